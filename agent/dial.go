package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// DialContainer connects to an address in the network of a running container, or to a Unix socket in its root. The
// connection has a CloseWrite. ctx bounds the connecting only.
//
// A container that does not run is ErrConflict, a request that cannot be honoured ErrInvalid, a socket that is not there
// ErrNotFound, and nobody who listens ErrUnavailable.
func (c *Client) DialContainer(ctx context.Context, req api.DialRequest) (net.Conn, error) {
	c.alias(&req)
	return connect(ctx, c, api.Dial, req, addr{req.Network, req.Address})
}

// Listen makes a Unix socket that containers can mount by its id, until the stream is closed. ctx bounds the opening only. An
// id that is taken is ErrExists.
func (c *Client) Listen(ctx context.Context, req api.ListenRequest) (io.Closer, error) {
	s, err := open(ctx, c, api.Listen, req)
	if err != nil {
		return nil, err // not a nil stream in an interface
	}
	return s, nil
}

// Accept waits for a connection to a socket of Listen, until ctx ends. The connection has a CloseWrite, and a Gone that is
// closed when its other side has closed it altogether. A socket that is not there, or not any more, is ErrNotFound.
func (c *Client) Accept(ctx context.Context, req api.AcceptRequest) (net.Conn, error) {
	return connect(ctx, c, api.Accept, req, addr{"unix", req.ID})
}

// connect opens a stream that carries a connection.
func connect[Req any](ctx context.Context, c *Client, m api.StreamMethod[Req], req Req, remote addr) (net.Conn, error) {
	var raw net.Conn
	if err := c.check(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	s, err := api.Open(ctx, func(ctx context.Context) (net.Conn, error) {
		var err error
		raw, err = c.dial(ctx)
		return raw, err
	}, m, req)
	if err != nil {
		return nil, err
	}
	return &conn{raw: raw, s: s, remote: remote}, nil
}

// conn is a connection whose bytes travel in frames. Deadlines are those of the stream below: a Read or a Write that comes
// too late loses nothing.
type conn struct {
	raw    net.Conn
	s      *api.Stream // the same; for Close
	remote addr

	rmu  sync.Mutex
	head [frameHeader]byte
	have int   // bytes of head that were read
	left int   // bytes of the frame's payload that were not
	rerr error // the end, or what came in place of data

	wmu   sync.Mutex
	rest  []byte // of a frame that was not written to its end
	ended bool   // by CloseWrite
}

// frameHeader is the length of what precedes a frame's payload: type, and length in 4 bytes, big endian.
const frameHeader = 5

var _ net.Conn = (*conn)(nil)

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for c.left == 0 {
		if c.rerr != nil {
			return 0, c.rerr
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n, err := c.raw.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads the header of a frame, as much of it as is there before the deadline.
func (c *conn) next() error {
	for c.have < frameHeader {
		n, err := c.raw.Read(c.head[c.have:])
		if c.have += n; err == io.EOF && c.have < frameHeader {
			return io.ErrUnexpectedEOF // the stream ended without the end of its data
		}
		if err != nil && c.have < frameHeader {
			return err
		}
	}
	c.have = 0
	kind, n := api.FrameType(c.head[0]), binary.BigEndian.Uint32(c.head[1:])
	switch {
	case n > api.MaxFrame || kind != api.FrameStdout:
		c.rerr = fmt.Errorf("read: %w: the agent sent frame %d of %d bytes", errs.ErrCorrupt, kind, n)
	case n == 0:
		c.rerr = io.EOF
	}
	c.left = int(n)
	if c.rerr != nil {
		c.left = 0
	}
	return nil
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	n := 0
	for len(p) > 0 {
		if c.ended {
			return n, net.ErrClosed
		}
		chunk := p[:min(len(p), api.ChunkSize)]
		taken, err := c.send(chunk)
		if taken {
			n += len(chunk)
		}
		if err != nil {
			return n, err
		}
		p = p[len(chunk):]
	}
	return n, nil
}

// send writes a frame. One of which a part was written when the deadline came is taken: the rest precedes the next.
func (c *conn) send(chunk []byte) (taken bool, err error) {
	for len(c.rest) > 0 {
		n, err := c.raw.Write(c.rest)
		if c.rest = c.rest[n:]; err != nil {
			return false, err
		}
	}
	var frame bytes.Buffer
	if err := api.WriteFrame(&frame, api.FrameStdin, chunk); err != nil {
		return false, err
	}
	b := frame.Bytes()
	n, err := c.raw.Write(b)
	if n > 0 {
		c.rest = b[n:]
	}
	return n > 0, err
}

// CloseWrite ends the direction to the container. A second call does nothing.
func (c *conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ended {
		return nil
	}
	_, err := c.send(nil)
	c.ended = err == nil
	return err
}

// Close implements net.Conn.
func (c *conn) Close() error { return c.s.Close() }

// Gone is closed when the other side has closed the connection altogether, also where what it sent was not read yet. It is
// nil where the transport does not tell.
func (c *conn) Gone() <-chan struct{} { return c.s.Gone() }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return addr{c.remote.network, "agent"} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.raw.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }

// addr is an address in a container.
type addr struct{ network, address string }

// Network implements net.Addr.
func (a addr) Network() string { return a.network }

// String implements net.Addr.
func (a addr) String() string { return a.address }
