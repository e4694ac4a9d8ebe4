package box

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

var _ engine.Listener = (*Box)(nil)

// Listen implements engine.Listener. The socket is mounted as a file of a share is, so that a container has it under any
// path; every user of the container may connect, since the one who mounts it decides who has it.
func (b *Box) Listen(ctx context.Context, id string) (_ net.Listener, err error) {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b.err != nil {
		return nil, b.err
	}
	m, err := b.shares.add(id, true)
	if err != nil {
		return nil, err
	}
	l := &socket{box: b, id: id, mount: m}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	at := filepath.Join(sharesDir, id)
	if err := os.MkdirAll(sharesDir, 0o700); err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if l.UnixListener, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: at}); err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := os.Chmod(at, 0o666); err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	fd, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the socket: %w", err)
	}
	b.shares.set(m, fd)
	return l, nil
}

// socket is a listener that has a place among the shares.
type socket struct {
	*net.UnixListener
	box   *Box
	id    string
	mount *shareMount
}

// Close closes the listener and removes its file. It is called once.
func (s *socket) Close() error {
	s.box.shares.remove(s.id, s.mount)
	if s.UnixListener == nil {
		return nil
	}
	return s.UnixListener.Close()
}
