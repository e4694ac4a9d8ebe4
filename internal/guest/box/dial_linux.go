package box

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
)

var _ engine.Dialer = (*sandbox)(nil)

// Dial implements engine.Dialer.
func (s *sandbox) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "unix" && address[0] == '/' {
		return s.dialPath(ctx, address)
	}
	return s.dialInside(ctx, network, address)
}

// dialPath connects to a socket among the container's files. The path is resolved within the container's root first: what is
// connected to is the file that was found then, whatever takes its name.
func (s *sandbox) dialPath(ctx context.Context, path string) (net.Conn, error) {
	root, done, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	fd, err := files.OpenIn(root, path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at the socket: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%w: it is no socket", errs.ErrInvalid)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
}

// dialInside connects in the container's network. A socket belongs to the network of the thread that makes it, wherever it
// is used then: so a thread is in the container's network for as long as it connects, and nothing else runs on it.
func (s *sandbox) dialInside(ctx context.Context, network, address string) (net.Conn, error) {
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
		r.conn, r.err = d.DialContext(ctx, network, address) // one literal address: by this goroutine
		if err := unix.Setns(own, unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with its goroutine
		}
		done <- r
	}()
	r := <-done
	return r.conn, r.err
}
