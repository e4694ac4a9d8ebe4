package network

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// spliceBuffer is how much is copied at a time, in bytes.
const spliceBuffer = 128 << 10

// splice joins two connections until both directions have ended, or ctx has. The end of one direction is passed on, and so
// is a connection that breaks. It closes both.
func splice(ctx context.Context, a, b net.Conn) {
	var once sync.Once
	abort := func() {
		once.Do(func() {
			reset(a)
			reset(b)
		})
	}
	stop := context.AfterFunc(ctx, abort)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { half(a, b, abort) })
	half(b, a, abort)
	wg.Wait()
	a.Close()
	b.Close()
}

// half copies one direction.
func half(dst, src net.Conn, abort func()) {
	buf := make([]byte, spliceBuffer)
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

// reset closes a connection with a reset where it can.
func reset(c net.Conn) {
	switch c := c.(type) {
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // it is closed either way
	case interface{ reset() }:
		c.reset()
	}
	c.Close()
}

// exchange joins two connections of packets until nothing has come for a time, or ctx has ended. It closes both.
func exchange(ctx context.Context, a, b net.Conn, idle time.Duration) {
	closeBoth := func() {
		a.Close()
		b.Close()
	}
	defer context.AfterFunc(ctx, closeBoth)()
	var last atomic.Int64 // when something came, of both
	last.Store(time.Now().UnixNano())
	copyPackets := func(dst, src net.Conn) {
		defer closeBoth()
		buf := make([]byte, 64<<10)
		for {
			left := idle - time.Since(time.Unix(0, last.Load()))
			if left <= 0 || src.SetReadDeadline(time.Now().Add(left)) != nil {
				return
			}
			n, err := src.Read(buf)
			var te net.Error
			if errors.As(err, &te) && te.Timeout() {
				continue
			}
			if err != nil {
				return
			}
			last.Store(time.Now().UnixNano())
			_, _ = dst.Write(buf[:n]) // a packet may be lost
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { copyPackets(a, b) })
	copyPackets(b, a)
	wg.Wait()
}
