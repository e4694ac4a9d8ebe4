package mux

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testLink is a Link whose host comes and goes: Read gives io.EOF when a connection ends, WaitPeer takes the next.
type testLink struct {
	next   chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	conn net.Conn
}

func newTestLink(first net.Conn) *testLink {
	return &testLink{next: make(chan net.Conn, 1), closed: make(chan struct{}), conn: first}
}

func (l *testLink) current() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn
}

func (l *testLink) Read(p []byte) (int, error) {
	n, err := l.current().Read(p)
	select {
	case <-l.closed:
		return n, net.ErrClosed
	default:
		return n, err
	}
}

func (l *testLink) Write(p []byte) (int, error)        { return l.current().Write(p) }
func (l *testLink) SetWriteDeadline(t time.Time) error { l.current().SetWriteDeadline(t); return nil }

func (l *testLink) WaitPeer(ctx context.Context) error {
	select {
	case c := <-l.next:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conn.Close()
		l.conn = c
		return nil
	case <-l.closed:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *testLink) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.current().Close()
}

// socketPair returns two connected stream sockets with buffers of the system.
func socketPair(t testing.TB) (net.Conn, net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	b, err := ln.Accept()
	require.NoError(t, err)
	return a, b
}

// pair is a session over a socket pair, with its guest.
type pair struct {
	host  *Session
	guest *Listener
	link  *testLink
	stop  func() // ends the guest and waits for it
}

func newPair(t testing.TB) *pair {
	a, b := socketPair(t)
	p := &pair{guest: &Listener{}, link: newTestLink(b)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.guest.Serve(ctx, p.link) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		require.Error(t, <-done)
	})
	var err error
	p.host, err = Connect(ctx, a)
	require.NoError(t, err)
	t.Cleanup(func() {
		p.host.Close()
		p.stop()
	})
	return p
}

func (p *pair) dial(t testing.TB, port uint32) net.Conn {
	c, err := p.host.Dial(context.Background(), port)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func echo(c net.Conn) {
	io.Copy(c, c)
	c.(interface{ CloseWrite() error }).CloseWrite()
}

func TestStreamsAreConns(t *testing.T) {
	p := newPair(t)
	accepted := make(chan net.Conn)
	p.guest.Handle(1, func(c net.Conn) {
		done := make(chan struct{})
		accepted <- &doneConn{Conn: c, done: done}
		<-done
	})
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c1, err := p.host.Dial(context.Background(), 1)
		if err != nil {
			return nil, nil, nil, err
		}
		c2 := (<-accepted).(*doneConn)
		return c1, c2, func() { c1.Close(); c2.finish() }, nil
	})
}

// doneConn lets its handler return when the test is done with it.
type doneConn struct {
	net.Conn
	done chan struct{}
	once sync.Once
}

func (d *doneConn) finish() { d.Conn.Close(); d.once.Do(func() { close(d.done) }) }
