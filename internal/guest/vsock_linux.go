package guest

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// vsockServer serves streams of the host over AF_VSOCK. Everything in the guest can connect to it too, a hostile
// container included: such connections are closed, but for that of check, which knows the cookie of the moment.
type vsockServer struct {
	serve func(context.Context, net.Conn)
	ping  func(context.Context, api.PingRequest) (api.PingReply, error)

	checking sync.Mutex // held during a check
	mu       sync.Mutex
	up       bool
	cookie   []byte // nil while no check is under way
}

const (
	cookieSize = 32
	cookieTime = 2 * time.Second // for the check's connection to say the cookie
)

// run listens until ctx ends. A kernel without AF_VSOCK is no error.
func (v *vsockServer) run(ctx context.Context) error {
	defer v.set(false)
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, api.Port, nil)
	if err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	v.set(true)
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("accept on vsock: %w", err)
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == vsock.Host {
			conns.Go(func() { v.serve(ctx, c) })
			continue
		}
		cookie := v.current()
		if cookie == nil {
			c.Close()
			continue
		}
		conns.Go(func() { v.serveCheck(ctx, c, cookie) })
	}
}

func (v *vsockServer) set(up bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.up = up
}

func (v *vsockServer) listening() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.up
}

func (v *vsockServer) current() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.cookie
}

// serveCheck serves Ping, and nothing else, to a connection that says the cookie.
func (v *vsockServer) serveCheck(ctx context.Context, c net.Conn, cookie []byte) {
	defer c.Close()
	got := make([]byte, cookieSize)
	if c.SetReadDeadline(time.Now().Add(cookieTime)) != nil {
		return
	}
	if _, err := io.ReadFull(c, got); err != nil || subtle.ConstantTimeCompare(got, cookie) != 1 {
		return
	}
	m := &api.Mux{}
	api.Handle(m, api.Ping, v.ping)
	m.ServeConn(ctx, c)
}

// check calls the agent over vsock, from inside the guest.
func (v *vsockServer) check(ctx context.Context, _ api.VsockCheckRequest) (rep api.VsockCheckReply, err error) {
	if !v.listening() {
		return rep, fmt.Errorf("check vsock: %w: the guest's kernel has no AF_VSOCK", errs.ErrUnsupported)
	}
	if !v.checking.TryLock() {
		return rep, fmt.Errorf("check vsock: %w: another check is under way: try again", errs.ErrConflict)
	}
	defer v.checking.Unlock()
	cookie := make([]byte, cookieSize)
	if _, err := rand.Read(cookie); err != nil {
		return rep, fmt.Errorf("check vsock: %w", err)
	}
	v.mu.Lock()
	v.cookie = cookie
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.cookie = nil
		v.mu.Unlock()
	}()
	rep.CID, err = vsock.ContextID()
	if err != nil {
		rep.CID = vsock.Local // no device for the host, loopback only
	}
	rep.Ping, err = api.Call(ctx, func(ctx context.Context) (net.Conn, error) {
		c, err := vsock.DialContext(ctx, vsock.Local, api.Port, nil)
		if err != nil {
			return nil, err
		}
		if _, err := c.Write(cookie); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}, api.Ping, api.PingRequest{})
	if err != nil {
		return rep, fmt.Errorf("check vsock: %w", err)
	}
	return rep, nil
}
