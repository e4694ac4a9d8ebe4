package network

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

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
