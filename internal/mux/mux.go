// Package mux carries many streams over one link between host and guest, with ports to dial, half-close and flow control
// of each stream.
//
// It is made for links that have no connections of their own, such as a virtio-serial port, where bytes of an earlier
// session may still wait on either side and where the other end may be replaced without notice, as happens in a clone of
// a machine. A session begins with a handshake: the host sends hello with a fresh nonce, the guest answers ack with it,
// the host sends go with it. Each side skips everything that is not the token it waits for. A hello inside a session
// ends that session and begins the next.
//
// The host dials, the guest listens. A stream that the guest tries to open towards the host ends the session, as does
// every other breach of the protocol. What a peer can make this side remember is bounded by Window for each stream that
// the host has opened.
//
// Nothing has a timeout: a paused machine keeps its session. What happens on the link is never waited for by the methods
// of a stream: they end when their deadline passes, the stream is closed or the session ends.
package mux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// VsockPort is the port of AF_VSOCK on which a guest accepts connections of its host that carry sessions, each its own.
const VsockPort uint32 = 1025

// Session dials ports of the guest. It is the host's end, made by Connect.
type Session struct {
	c    *core
	stop chan struct{} // closed when every goroutine of the session has ended
}

// Connect runs the host's side of the handshake on conn and returns a session that owns it. It waits for a guest that
// does not answer yet until ctx ends. Where it returns an error, conn is closed.
func Connect(ctx context.Context, conn net.Conn) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r, err := hostHandshake(conn)
	if !stop() {
		return nil, fmt.Errorf("mux handshake: %w", context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("mux handshake: %w: %w", errs.ErrUnavailable, readError(err))
	}
	s := &Session{c: newCore(conn, nil), stop: make(chan struct{})}
	go func() {
		defer close(s.stop)
		s.c.run(r, func() { conn.Close() })
	}()
	return s, nil
}

// Dial opens a stream to a port of the guest. It does not wait for the guest: a port on which nobody listens makes the
// first read of the stream fail with ErrUnavailable. On a session that has ended Dial itself fails with ErrUnavailable.
func (s *Session) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, err := s.c.open(port)
	if err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, err)
	}
	return st, nil
}

// Done is closed when the session has ended, by Close, by the link's end or by a breach of the protocol.
func (s *Session) Done() <-chan struct{} { return s.c.dead }

// Err tells why the session has ended, and is nil while it lives. After Close it wraps ErrClosed.
func (s *Session) Err() error { return s.c.cause() }

// Close ends the session, its streams and its connection, and returns when all its goroutines have ended. A second call
// waits too. It always returns nil.
func (s *Session) Close() error {
	s.c.fail(fmt.Errorf("mux session: %w", errs.ErrClosed))
	<-s.stop
	return nil
}

// helloAgain is how long the host waits for an ack before it sends its next hello; each wait is twice the last.
const (
	helloAgain    = 500 * time.Millisecond
	helloAgainMax = 8 * time.Second
)

func hostHandshake(conn net.Conn) (*bufio.Reader, error) {
	n := newNonce()
	r := bufio.NewReaderSize(conn, readBuffer)
	hello := token(kindHello, n)
	for wait := helloAgain; ; wait = min(2*wait, helloAgainMax) {
		if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
			return nil, err
		}
		// A hello of which only a part was written is skipped by the guest like everything else that is none.
		if _, err := conn.Write(hello); err != nil && !isTimeout(err) {
			return nil, err
		}
		err := scanFor(r, kindAck, n)
		if isTimeout(err) {
			// The guest may be in the middle of a frame of an earlier session and take a hello for its payload. Zeros as
			// long as the longest frame bring it to the end of that, and no frame begins with a zero.
			hello = append(make([]byte, maxFrame), token(kindHello, n)...)
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return nil, err
		}
		_, err = conn.Write(token(kindGo, n))
		return r, err
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
