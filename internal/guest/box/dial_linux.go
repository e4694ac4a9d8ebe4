package box

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

var _ engine.Dialer = (*sandbox)(nil)

// Dial implements engine.Dialer. A socket belongs to the network of the thread that makes it, wherever it is used then:
// so a thread is in the container's network for as long as it connects, and nothing else runs on it.
func (s *sandbox) Dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	files := &descriptors{}
	defer files.close()
	pidfd, _, err := s.open(files)
	if err != nil {
		return nil, ended(err)
	}
	own, err := files.add(unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	if err != nil {
		return nil, fmt.Errorf("open the own network namespace: %w", err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() { // waited for below
		runtime.LockOSThread()
		var r result
		if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- result{err: ended(fmt.Errorf("join the container's network: %w", err))}
			return
		}
		var d net.Dialer
		d.KeepAlive = -1
		r.conn, r.err = d.DialContext(ctx, network, a.String()) // one literal address: by this goroutine
		if err := unix.Setns(own, unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with its goroutine
		}
		done <- r
	}()
	r := <-done
	return r.conn, r.err
}
