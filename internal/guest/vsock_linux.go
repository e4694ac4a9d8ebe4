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
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

// vsockServer serves streams of the host over AF_VSOCK: on api.Port each connection is a stream, on mux.VsockPort each
// carries sessions of package mux. Everything in the guest can connect to it too, a hostile container included: such
// connections are closed, but for those of check, which knows the cookie of the moment.
type vsockServer struct {
	serve func(context.Context, net.Conn)
	ping  func(context.Context, api.PingRequest) (api.PingReply, error)

	streams, sessions net.Listener // nil where the kernel has no AF_VSOCK

	checking sync.Mutex // held during a check
	mu       sync.Mutex
	up       bool
	cookie   []byte // nil while no check is under way
}

const (
	cookieSize = 32
	cookieTime = 2 * time.Second // for the check's connection to say the cookie
)

// listen opens what run accepts connections on. A kernel without AF_VSOCK has none, which is no error.
func (v *vsockServer) listen() error {
	streams, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, api.Port, nil)
	if err != nil {
		return nil
	}
	sessions, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, mux.VsockPort, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on vsock: %w", err), streams.Close())
	}
	v.streams, v.sessions = streams, sessions
	v.set(true)
	return nil
}

// run serves what listen has opened until ctx ends.
func (v *vsockServer) run(ctx context.Context) error {
	if v.streams == nil {
		return nil
	}
	defer v.set(false)
	closeBoth := func() {
		v.streams.Close()
		v.sessions.Close()
	}
	defer context.AfterFunc(ctx, closeBoth)()
	ended := make(chan error, 2)
	go func() { ended <- v.accept(ctx, v.streams, v.serve, v.serveCheck) }()
	go func() {
		ended <- v.accept(ctx, v.sessions, func(ctx context.Context, c net.Conn) { serveSessions(ctx, c, v.serve) },
			func(ctx context.Context, c net.Conn) { serveSessions(ctx, c, v.serveCheck) })
	}()
	err := <-ended
	closeBoth()
	<-ended
	return err
}

// accept serves the connections of the host by one function, and those of the guest itself by another while a check is
// under way.
func (v *vsockServer) accept(ctx context.Context, l net.Listener, host, check func(context.Context, net.Conn)) error {
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
			conns.Go(func() { host(ctx, c) })
			continue
		}
		if v.current() == nil {
			c.Close()
			continue
		}
		conns.Go(func() { check(ctx, c) })
	}
}

// serveSessions serves the sessions that a connection carries, each stream to api.Port by fn.
func serveSessions(ctx context.Context, c net.Conn, fn func(context.Context, net.Conn)) {
	var l mux.Listener
	l.Handle(api.Port, func(c net.Conn) { fn(ctx, c) })
	// The error is that of a host that has gone; the next one makes a connection of its own.
	_ = l.Serve(ctx, connLink{c})
}

// connLink is a connection as the link of a multiplexer. Its peer does not come back.
type connLink struct{ net.Conn }

// WaitPeer returns net.ErrClosed.
func (connLink) WaitPeer(context.Context) error { return net.ErrClosed }

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
func (v *vsockServer) serveCheck(ctx context.Context, c net.Conn) {
	defer c.Close()
	cookie := v.current()
	if cookie == nil {
		return
	}
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
		return withCookie(c, cookie)
	}, api.Ping, api.PingRequest{})
	if err == nil {
		err = v.checkSessions(ctx, cookie)
	}
	if err != nil {
		return rep, fmt.Errorf("check vsock: %w", err)
	}
	return rep, nil
}

// checkSessions calls the agent over a session of package mux.
func (v *vsockServer) checkSessions(ctx context.Context, cookie []byte) error {
	c, err := vsock.DialContext(ctx, vsock.Local, mux.VsockPort, nil)
	if err != nil {
		return err
	}
	s, err := mux.Connect(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = api.Call(ctx, func(ctx context.Context) (net.Conn, error) {
		c, err := s.Dial(ctx, api.Port)
		if err != nil {
			return nil, err
		}
		return withCookie(c, cookie)
	}, api.Ping, api.PingRequest{})
	return err
}

func withCookie(c net.Conn, cookie []byte) (net.Conn, error) {
	if _, err := c.Write(cookie); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
