package mux

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestScanFindsTokens(t *testing.T) {
	n := newNonce()
	tok := string(token(kindAck, n))
	for name, text := range map[string]string{
		"alone":                  tok,
		"after junk":             "junk" + tok,
		"after zeros":            strings.Repeat("\x00", 100_000) + tok,
		"after its own begin":    tok[:10] + tok,
		"after most of itself":   tok[:len(tokenPrefix)] + tok,
		"after half of another":  tok[:len(tokenPrefix)+kindSize+3] + tok,
		"after another kind":     string(token("what", n)) + tok,
		"after another nonce":    string(token(kindAck, newNonce())) + tok,
		"at the buffer's border": strings.Repeat("x", readBuffer-5) + tok,
		"after a frame's bytes":  strings.Repeat("\x02\x00\x00\x00\x00\x00\x00\x01", 20_000) + tok,
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(text + "rest"), iotest.OneByteReader(strings.NewReader(text + "rest"))} {
				br := bufio.NewReaderSize(r, readBuffer)
				require.NoError(t, scanFor(br, kindAck, n))
				rest, err := io.ReadAll(br)
				require.NoError(t, err)
				require.Equal(t, "rest", string(rest))
			}
		})
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("junk"), []byte("more"))
	f.Add([]byte(tokenPrefix), []byte{})
	f.Add([]byte{0, 0, 0}, []byte(tokenPrefix[:5]))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		n := newNonce() // nobody can have sent it before
		text := append(append(bytes.Clone(before), token(kindGo, n)...), after...)
		err := scanFor(bufio.NewReaderSize(bytes.NewReader(text), readBuffer), kindGo, n)
		require.NoError(t, err)
	})
}

// TestHelloBeforeTheGuestIsUp sends several hellos to a guest that reads them all later.
func TestHelloBeforeTheGuestIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		l := newTestLink(b)
		var guest Listener
		guest.Handle(1, echo)
		served := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, func() { served <- guest.Serve(ctx, l) })
		s, err := Connect(ctx, a)
		require.NoError(t, err)
		c, err := s.Dial(ctx, 1)
		require.NoError(t, err)
		_, err = c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 1))
		require.NoError(t, err)
		require.NoError(t, s.Close())
		cancel()
		require.ErrorIs(t, <-served, context.Canceled)
	})
}

func TestConnectEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go io.Copy(io.Discard, b) // a guest that never answers
		_, err := Connect(ctx, a)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestConnectToNobody(t *testing.T) {
	a, b := net.Pipe()
	b.Close()
	_, err := Connect(t.Context(), a)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.NotErrorIs(t, err, io.EOF)
}

// roundTrip sends a byte through a session's port 1 and back.
func roundTrip(t *testing.T, s *Session) {
	c, err := s.Dial(t.Context(), 1)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
}

// TestHostGoesAndComesBack is what a virtio-serial port shows when its host's end is closed and opened again.
func TestHostGoesAndComesBack(t *testing.T) {
	p := newPair(t)
	p.guest.Handle(1, echo)
	roundTrip(t, p.host)
	for range 5 {
		idle := p.dial(t, 1)
		require.NoError(t, p.host.Close())
		_, err := idle.Read(make([]byte, 1))
		require.Error(t, err)
		a, b := socketPair(t)
		p.link.next <- b
		p.host, err = Connect(t.Context(), a)
		require.NoError(t, err)
		roundTrip(t, p.host)
	}
}

// swapConn is a connection whose user is replaced without the other end's notice, as happens in a clone of a machine.
type swapConn struct {
	net.Conn
	gone chan struct{}
}

func (c *swapConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.gone: // what was read belongs to the successor: a clone's host never saw it
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *swapConn) Close() error {
	select {
	case <-c.gone:
	default:
		close(c.gone)
		c.Conn.SetReadDeadline(time.Now())
	}
	return nil
}

// TestNewHostWithoutNotice replaces the host on the same link, at a frame's end and in the middle of one.
func TestNewHostWithoutNotice(t *testing.T) {
	for name, last := range map[string][]byte{
		"between frames":    nil,
		"in a header":       {frameData, 0, 0, 0, 0, 0},
		"in a payload":      {frameData, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x40, 0, 'a', 'b', 'c'},
		"in a long payload": {frameData, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x7f, 0, 'a', 'b', 'c'},
		"in a token":        []byte(tokenPrefix[:8]),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			defer a.Close()
			var guest Listener
			guest.Handle(1, echo)
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- guest.Serve(ctx, newTestLink(b)) }()
			for range 3 {
				s, err := Connect(ctx, &swapConn{Conn: a, gone: make(chan struct{})})
				require.NoError(t, err)
				roundTrip(t, s)
				_, err = s.Dial(ctx, 1)
				require.NoError(t, err)
				require.NoError(t, s.Close())
				require.NoError(t, a.SetDeadline(time.Time{}))
				_, err = a.Write(last)
				require.NoError(t, err)
			}
			cancel()
			require.ErrorIs(t, <-served, context.Canceled)
		})
	}
}

// TestServeEndsWithItsLink checks that Serve tells why, and waits for handlers.
func TestServeEndsWithItsLink(t *testing.T) {
	boom := errors.New("boom")
	var guest Listener
	err := guest.Serve(t.Context(), &brokenLink{err: boom})
	require.ErrorIs(t, err, boom)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	require.ErrorIs(t, guest.Serve(ctx, &brokenLink{err: io.EOF}), boom)
	require.ErrorIs(t, guest.Serve(t.Context(), &brokenLink{err: io.EOF}), errs.ErrClosed)
}

// brokenLink fails every read with err, and has no host that comes back.
type brokenLink struct{ err error }

func (l *brokenLink) Read([]byte) (int, error)         { return 0, l.err }
func (l *brokenLink) Write(p []byte) (int, error)      { return len(p), nil }
func (l *brokenLink) Close() error                     { return nil }
func (l *brokenLink) SetWriteDeadline(time.Time) error { return nil }
func (l *brokenLink) WaitPeer(context.Context) error   { return errs.ErrClosed }
