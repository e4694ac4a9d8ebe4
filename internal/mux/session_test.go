package mux

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func closeWrite(t testing.TB, c net.Conn) {
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
}

func TestGoneIsToldToOneWhoDoesNotRead(t *testing.T) {
	for name, leave := range map[string]func(*pair, net.Conn){
		"closed":        func(_ *pair, c net.Conn) { c.Close() },
		"session ended": func(p *pair, _ net.Conn) { p.host.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			got := make(chan net.Conn, 1)
			p.guest.Handle(1, func(c net.Conn) {
				got <- c
				<-c.(interface{ Gone() <-chan struct{} }).Gone()
				c.Close()
				close(got)
			})
			c := p.dial(t, 1)
			_, err := c.Write(make([]byte, 1000))
			require.NoError(t, err)
			closeWrite(t, c) // is not the end
			g := <-got
			select {
			case <-g.(interface{ Gone() <-chan struct{} }).Gone():
				t.Fatal("gone before the end")
			default:
			}
			leave(p, c)
			<-got
		})
	}
}

func TestHalfClose(t *testing.T) {
	p := newPair(t)
	p.guest.Handle(1, echo)
	c := p.dial(t, 1)
	_, err := io.WriteString(c, "hello")
	require.NoError(t, err)
	closeWrite(t, c)
	closeWrite(t, c)
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	_, err = c.Read(b)
	require.ErrorIs(t, err, net.ErrClosed)
	require.Error(t, c.(interface{ CloseWrite() error }).CloseWrite())
	require.ErrorIs(t, c.SetDeadline(time.Now()), net.ErrClosed)
	require.Equal(t, "1", c.RemoteAddr().String())
}

func TestNobodyListens(t *testing.T) {
	p := newPair(t)
	c := p.dial(t, 7)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "nothing listens on port 7")
	_, err = c.Write(make([]byte, 1))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	p.guest.Handle(7, echo)
	c = p.dial(t, 7)
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	p.guest.Handle(7, nil)
	_, err = p.dial(t, 7).Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.ErrUnavailable)
}

func TestCloseFreesPeerThatWaitsForItsWindow(t *testing.T) {
	p := newPair(t)
	result := make(chan error, 1)
	p.guest.Handle(1, func(c net.Conn) {
		_, err := c.Write(make([]byte, 4*Window))
		result <- err
	})
	c := p.dial(t, 1)
	_, err := io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.ErrorIs(t, <-result, io.ErrClosedPipe)
}

func TestWhatWasWrittenBeforeCloseArrives(t *testing.T) {
	p := newPair(t)
	want := bytes.Repeat([]byte("0123456789"), Window/20)
	p.guest.Handle(1, func(c net.Conn) { c.Write(want) }) // closed by its return
	c := p.dial(t, 1)
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func TestDeadlinesWhileTheLinkIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a deadline passes when all has been written that can be
		a, b := net.Pipe() // takes nothing that is not read
		defer b.Close()
		go func() { // a guest that does its handshake and is then paused
			r := bufio.NewReader(b)
			guestHandshake(r, b)
		}()
		s, err := Connect(t.Context(), a)
		require.NoError(t, err)
		c, err := s.Dial(t.Context(), 1)
		require.NoError(t, err)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
		n, err := c.Write(make([]byte, 4*Window))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Positive(t, n)
		require.NoError(t, c.SetWriteDeadline(time.Time{}))
		closed := make(chan error)
		go func() {
			_, err := c.Write(make([]byte, 4*Window))
			closed <- err
		}()
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-closed, net.ErrClosed)
		require.NoError(t, s.Close())
	})
}

func TestSessionEndIsNoEndOfStream(t *testing.T) {
	for name, end := range map[string]func(*pair){
		"close":      func(p *pair) { p.host.Close() },
		"guest gone": func(p *pair) { p.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.guest.Handle(1, echo)
			c := p.dial(t, 1)
			go end(p)
			_, err := c.Read(make([]byte, 1))
			require.Error(t, err)
			require.False(t, errors.Is(err, io.EOF), err)
			_, err = c.Write(make([]byte, 1))
			require.Error(t, err)
			<-p.host.Done()
			require.Error(t, p.host.Err())
			_, err = p.host.Dial(t.Context(), 1)
			require.Error(t, err)
		})
	}
}

func TestSlowReaderHoldsUpNobody(t *testing.T) {
	p := newPair(t)
	p.guest.Handle(1, func(c net.Conn) { io.Copy(c, zeros{}) })
	p.guest.Handle(2, echo)
	for range 20 {
		p.dial(t, 1) // never read
	}
	c := p.dial(t, 2)
	want := make([]byte, 4*Window)
	go func() { c.Write(want); c.(interface{ CloseWrite() error }).CloseWrite() }()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Len(t, got, len(want))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHammer opens, uses and closes streams from many goroutines in random ways while deadlines come and go.
func TestHammer(t *testing.T) {
	p := newPair(t)
	p.guest.Handle(1, echo)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for range 10 {
				c, err := p.host.Dial(context.Background(), 1)
				if err != nil {
					t.Error(err)
					return
				}
				abuse(t, rnd, c)
			}
		})
	}
	wg.Wait()
	require.NoError(t, p.host.Err())
	p.host.c.mu.Lock()
	defer p.host.c.mu.Unlock()
	require.Empty(t, p.host.c.streams)
}

// abuse runs a transfer on a stream, and sometimes cuts it off.
func abuse(t *testing.T, rnd *rand.Rand, c net.Conn) {
	want := make([]byte, rnd.IntN(3*Window/2))
	cut := rnd.IntN(3) == 0
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.Write(want)
		if err == nil {
			err = c.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err != nil && !cut {
			t.Error(err)
		}
	})
	if cut {
		io.CopyN(io.Discard, c, int64(len(want)/2))
		c.SetDeadline(time.Now())
		c.Close()
	} else if got, err := io.ReadAll(c); err != nil || len(got) != len(want) {
		t.Error(len(got), len(want), err)
	}
	wg.Wait()
	c.Close()
}

func TestMemoryPerStreamIsBounded(t *testing.T) {
	var q ring
	q.write(make([]byte, Window-1))
	q.write(make([]byte, 1))
	require.Len(t, q.b, Window)
	require.Equal(t, Window, q.len())
}

// TestHostileGuest has a guest send what it must not. The session ends; nothing hangs or panics.
func TestHostileGuest(t *testing.T) {
	frame := func(kind byte, id, arg uint32, payload int) []byte {
		b := make([]byte, headerSize+payload)
		b[0] = kind
		binary.BigEndian.PutUint32(b[4:], id)
		binary.BigEndian.PutUint32(b[8:], arg)
		return b
	}
	full := bytes.Repeat(frame(frameData, 1, maxPayload, maxPayload), Window/maxPayload)
	for name, sent := range map[string][]byte{
		"opens a stream":           frame(frameOpen, 2, 1, 0),
		"opens our stream":         frame(frameOpen, 1, 1, 0),
		"unknown stream":           frame(frameData, 2, 1, 1),
		"stream zero":              frame(frameFin, 0, 0, 0),
		"unknown kind":             frame(200, 1, 0, 0),
		"reserved byte":            {frameFin, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
		"empty data":               frame(frameData, 1, 0, 0),
		"huge data":                frame(frameData, 1, 1<<31, 0),
		"more than its window":     append(full, frame(frameData, 1, 1, 1)...),
		"data after the end":       append(frame(frameFin, 1, 0, 0), frame(frameData, 1, 1, 1)...),
		"window from nothing":      frame(frameWindow, 1, 1, 0),
		"window of nothing":        frame(frameWindow, 1, 0, 0),
		"huge window":              frame(frameWindow, 1, 1<<32-1, 0),
		"a handshake in the midst": token(kindAck, newNonce()),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			defer b.Close()
			shaken := make(chan error, 1)
			r := bufio.NewReader(b)
			go func() { shaken <- guestHandshake(r, b) }()
			s, err := Connect(t.Context(), a)
			require.NoError(t, err)
			defer s.Close()
			require.NoError(t, <-shaken)
			c, err := s.Dial(t.Context(), 1)
			require.NoError(t, err)
			go b.Write(sent)
			<-s.Done()
			require.ErrorIs(t, s.Err(), ErrProtocol)
			_, err = c.Write([]byte("x"))
			require.ErrorIs(t, err, errs.ErrUnavailable)
		})
	}
}

func FuzzHostileGuest(f *testing.F) {
	f.Add([]byte("hello"))
	f.Add([]byte{frameData, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i', frameFin, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{frameRefuse, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, frameClose, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := newCore(io.Discard, nil)
		st, err := c.open(1)
		require.NoError(t, err)
		read := make(chan int)
		go func() {
			b, _ := io.ReadAll(st)
			read <- len(b)
		}()
		c.run(bufio.NewReaderSize(bytes.NewReader(sent), readBuffer), func() {})
		require.Error(t, c.cause())
		require.LessOrEqual(t, <-read, len(sent))
		st.Close()
	})
}
