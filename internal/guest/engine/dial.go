package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Dialer is a Sandbox whose network can be reached.
type Dialer interface {
	// Dial connects to an address in the container's network. The request was checked.
	Dial(ctx context.Context, network string, address netip.AddrPort) (net.Conn, error)
}

// CheckDial returns the address of a request, or ErrInvalid for one that cannot be honoured.
func CheckDial(req api.DialRequest) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(req.Address)
	if err != nil || a.Port() == 0 {
		return a, fmt.Errorf("dial: %w address %.80q: want an IP address and a port", errs.ErrInvalid, req.Address)
	}
	switch {
	case req.Network == "tcp", req.Network == "tcp4" && a.Addr().Is4(), req.Network == "tcp6" && a.Addr().Is6():
		return a, nil
	}
	return a, fmt.Errorf("dial: %w network %.20q for %s: want tcp, tcp4 or tcp6", errs.ErrInvalid, req.Network, a)
}

// dial connects a stream to an address in the network of a container until both directions, or the stream, have ended.
func (e *Engine) dial(ctx context.Context, req api.DialRequest, st *api.Stream, accept func() error) error {
	a, err := CheckDial(req)
	if err != nil {
		return err
	}
	c, err := e.get(req.ID)
	if err != nil {
		return err
	}
	conn, err := c.dial(ctx, req.Network, a)
	if err != nil {
		return fmt.Errorf("dial %s in container %s: %w", a, c.id, err)
	}
	defer conn.Close()
	ctx = st.HandleFrames(ctx, func(kind api.FrameType, p []byte) bool {
		if kind != api.FrameStdin {
			return false
		}
		if len(p) == 0 {
			return closeWrite(conn) == nil
		}
		_, err := conn.Write(p)
		return err == nil
	})
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := accept(); err != nil {
		return err
	}
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
			<-ctx.Done() // the other direction may go on: the host closes the stream
			return nil
		case err != nil:
			return nil // the stream ends without the end of the data
		}
	}
}

// dial connects while the container runs.
func (c *container) dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	d, ok := c.sb.(Dialer)
	if !ok {
		return nil, errs.ErrUnsupported
	}
	if st := c.get(); st != running {
		return nil, fmt.Errorf("%w: it is %s", errs.ErrConflict, st)
	}
	conn, err := d.Dial(ctx, network, a)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return conn, nil
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
