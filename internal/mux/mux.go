// Package mux carries many streams over one connection between host and guest, with ports to dial and half-close of
// each stream. It is yamux with a handshake in front.
//
// The handshake makes a session begin cleanly on a link that has no connections of its own, such as a virtio-serial
// port, where bytes of an earlier session may still wait on either side. The host sends hello with a fresh nonce, the
// guest answers ack with it, the host sends go with it, and the session begins. Each side skips everything that is not
// the token it waits for. A host that gets no answer sends another hello.
package mux

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	tokenPrefix = "\x00arcbox-mux1-"
	nonceSize   = 16
	tokenSize   = len(tokenPrefix) + 4 + nonceSize
)

func token(kind string, nonce []byte) []byte {
	return append([]byte(tokenPrefix+kind), nonce...)
}

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false                 // a paused machine answers nothing and must keep its session
	c.ConnectionWriteTimeout = 24 * time.Hour // the same; the owner of the machine closes the link
	c.StreamCloseTimeout = 0                  // a half-closed stream may live as long as its process
	c.StreamOpenTimeout = 0                   // the dialer's context bounds it
	c.MaxStreamWindowSize = 1 << 20
	c.AcceptBacklog = 1024
	c.LogOutput = io.Discard
	return c
}

// link is a net.Conn over the rest of a handshake's reader. yamux only needs the io methods.
type link struct {
	io.Reader
	io.WriteCloser
}

// Session dials ports on the other side. It is the host's end.
type Session struct {
	y *yamux.Session
}

// Connect runs the host's side of the handshake on conn and returns a session that owns it. It waits for a guest that
// does not answer yet until ctx ends; where it returns an error, conn is closed.
func Connect(ctx context.Context, conn net.Conn) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r, err := hostHandshake(conn)
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("mux handshake: %w", err)
	}
	y, err := yamux.Client(&link{r, conn}, config())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("mux session: %w", err)
	}
	return &Session{y}, nil
}

// helloAgain is how long the host waits for an ack before it sends another hello: bytes sent to a guest that was torn
// out of an earlier session may have been taken for a part of that.
const helloAgain = 500 * time.Millisecond

func hostHandshake(conn net.Conn) (io.Reader, error) {
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	want := token("ack.", nonce)
	for wait := helloAgain; ; wait = min(2*wait, 8*time.Second) {
		if _, err := conn.Write(token("helo", nonce)); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		err := skipTo(r, want)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Time{})
		_, err = conn.Write(token("go..", nonce))
		return r, err
	}
}

// skipTo reads until it has read want.
func skipTo(r *bufio.Reader, want []byte) error {
	for {
		b, err := r.Peek(len(want))
		if err != nil {
			return err
		}
		if string(b) == string(want) {
			_, err := r.Discard(len(want))
			return err
		}
		if _, err := r.Discard(1); err != nil {
			return err
		}
	}
}

// Dial opens a stream to a port of the guest. A port nobody listens on gives a stream that ends at once.
func (s *Session) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, err := s.y.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open stream: %w: %w", errs.ErrUnavailable, err)
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], port)
	if _, err := st.Write(b[:]); err != nil {
		st.Close()
		return nil, fmt.Errorf("open stream: %w: %w", errs.ErrUnavailable, err)
	}
	return newStream(st), nil
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.y.CloseChan() }

// Close ends the session, its streams and its connection.
func (s *Session) Close() error { return s.y.Close() }

// stream is a yamux stream whose Close ends both directions: yamux's own Close is a half-close.
type stream struct {
	*yamux.Stream
	once sync.Once
}

func newStream(st *yamux.Stream) *stream { return &stream{Stream: st} }

// CloseWrite ends the direction to the other side.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions.
func (s *stream) Close() error {
	err := s.Stream.Close()
	s.once.Do(func() {
		// Wake a reader, and read away what still comes so that the stream's window opens and yamux forgets the stream.
		_ = s.SetReadDeadline(time.Now())
	})
	return err
}

// Listener hands the guest's streams to those who listen on ports. It is the guest's end.
type Listener struct {
	mu    sync.Mutex
	ports map[uint32]func(net.Conn)
}

// Handle makes fn serve each stream to a port, in a goroutine of its own. fn closes the stream.
func (l *Listener) Handle(port uint32, fn func(net.Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ports == nil {
		l.ports = make(map[uint32]func(net.Conn))
	}
	l.ports[port] = fn
}

// Serve runs the guest's side of sessions on conn, one after the other, until conn ends.
func (l *Listener) Serve(conn io.ReadWriteCloser) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		nonce, err := guestHandshake(r, conn)
		if err != nil {
			return fmt.Errorf("mux handshake: %w", err)
		}
		_ = nonce
		panic(hex.EncodeToString(nonce)) // TODO
	}
}

func guestHandshake(r *bufio.Reader, w io.Writer) ([]byte, error) { return nil, nil }
