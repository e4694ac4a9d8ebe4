// Package splice joins two connections, so that what comes out of one goes into the other.
package splice

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// bufferSize is how much is copied at a time, in bytes.
const bufferSize = 128 << 10

// Join joins two connections until both directions have ended, or ctx has. The end of one direction is passed on, and so
// is a connection that breaks. It closes both.
//
// A connection with a method Gone, which is closed when its other side has closed it altogether, takes nothing any more from
// then on: the other connection is closed too, once it has got what was on its way.
func Join(ctx context.Context, a, b net.Conn) {
	var once sync.Once
	abort := func() {
		once.Do(func() {
			Reset(a)
			Reset(b)
		})
	}
	stop := context.AfterFunc(ctx, abort)
	defer stop()
	var wg, both sync.WaitGroup
	both.Add(2)
	done := make(chan struct{})
	for _, d := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			half(d[0], d[1], abort)
			both.Done()
			if left(d[1], done) {
				abort()
			}
		})
	}
	both.Wait()
	close(done)
	wg.Wait()
	a.Close()
	b.Close()
}

// left waits for the other side of a connection, which has ended its direction, to close it altogether.
func left(c net.Conn, done <-chan struct{}) bool {
	g, ok := c.(interface{ Gone() <-chan struct{} })
	if !ok {
		return false
	}
	select {
	case <-g.Gone():
		return true
	case <-done:
		return false
	}
}

// half copies one direction.
func half(dst, src net.Conn, abort func()) {
	buf := make([]byte, bufferSize)
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	if err == nil || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
		err = closeWrite(dst)
	}
	if err != nil {
		abort()
	}
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		err := h.CloseWrite()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
	return c.Close() // it cannot say that only one direction has ended
}

// Reset closes a connection with a reset where it can.
func Reset(c net.Conn) {
	switch c := c.(type) {
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // it is closed either way
	case interface{ Reset() }:
		c.Reset()
	}
	c.Close()
}
