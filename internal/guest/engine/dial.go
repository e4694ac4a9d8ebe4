package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Dialer is a Sandbox whose network can be reached.
type Dialer interface {
	// Dial connects to an address in the container's network, or to a socket among its files. The request was checked. A
	// socket that is not there is ErrNotFound.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// The limits of the address of a Unix socket, in bytes.
const (
	maxPath     = 4095
	maxAbstract = 107 // what the kernel takes, '@' in place of the zero byte
)

// CheckDial returns ErrInvalid for a request that cannot be honoured.
func CheckDial(req api.DialRequest) error {
	at := req.Address
	if req.Network == "unix" {
		path, abstract := strings.HasPrefix(at, "/"), strings.HasPrefix(at, "@")
		if strings.IndexByte(at, 0) >= 0 || !(path && len(at) <= maxPath || abstract && len(at) > 1 && len(at) <= maxAbstract) {
			return fmt.Errorf("dial: %w address %.80q: want an absolute path, or '@' and the rest of an abstract name", errs.ErrInvalid, at)
		}
		return nil
	}
	a, err := netip.ParseAddrPort(at)
	if err != nil || a.Port() == 0 {
		return fmt.Errorf("dial: %w address %.80q: want an IP address and a port", errs.ErrInvalid, at)
	}
	switch {
	case req.Network == "tcp", req.Network == "tcp4" && a.Addr().Is4(), req.Network == "tcp6" && a.Addr().Is6():
		return nil
	}
	return fmt.Errorf("dial: %w network %.20q for %s: want tcp, tcp4, tcp6 or unix", errs.ErrInvalid, req.Network, a)
}

// dial connects a stream to an address of a container until both directions, or the stream, have ended.
func (e *Engine) dial(ctx context.Context, req api.DialRequest, st *api.Stream, accept func() error) error {
	if err := CheckDial(req); err != nil {
		return err
	}
	c, err := e.get(req.ID)
	if err != nil {
		return err
	}
	conn, err := c.dial(ctx, req.Network, req.Address)
	if err != nil {
		return fmt.Errorf("dial %.300s in container %s: %w", req.Address, c.id, err)
	}
	t := tunnel{conn: conn}
	defer t.close()
	ctx = st.HandleFrames(ctx, t.frame)
	if err := accept(); err != nil {
		return err
	}
	return t.run(ctx, st)
}

// tunnel carries a connection in the frames of a stream.
type tunnel struct {
	mu   sync.Mutex
	conn net.Conn // nil before there is one; under mu until then
}

// set gives the tunnel its connection.
func (t *tunnel) set(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn = c
}

func (t *tunnel) get() net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn
}

func (t *tunnel) close() {
	if c := t.get(); c != nil {
		c.Close()
	}
}

// frame hands on what the host sends. The host waits until there is a connection.
func (t *tunnel) frame(kind api.FrameType, p []byte) bool {
	c := t.get()
	if kind != api.FrameStdin || c == nil {
		return false
	}
	if len(p) == 0 {
		return closeWrite(c) == nil
	}
	_, err := c.Write(p)
	return err == nil
}

// run sends the host what the connection yields. ctx ends with the stream.
func (t *tunnel) run(ctx context.Context, st *api.Stream) error {
	conn := t.get()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, api.ChunkSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := st.Send(api.FrameStdout, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if err := st.Send(api.FrameStdout, nil); err != nil {
				return err
			}
			hangup(ctx, conn) // the other direction may go on
			return nil
		case err != nil:
			return nil // the stream ends without the end of the data
		}
	}
}

// dial connects while the container runs.
func (c *container) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d, ok := c.sb.(Dialer)
	if !ok {
		return nil, errs.ErrUnsupported
	}
	if st := c.get(); st != running {
		return nil, fmt.Errorf("%w: it is %s", errs.ErrConflict, st)
	}
	conn, err := d.Dial(ctx, network, address)
	if err != nil && !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrInvalid) {
		err = fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return conn, err
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
