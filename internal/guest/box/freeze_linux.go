package box

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// Update changes limits.
func (s *sandbox) Update(r api.Resources) error { return s.cgroup.limit(r, false) }

// Freeze stops all processes of the container, or lets them go on. It returns when that is so. Where ctx ends before all
// have stopped, they go on.
func (s *sandbox) Freeze(ctx context.Context, frozen bool) error {
	if !frozen {
		return s.cgroup.freeze(ctx, "0")
	}
	err := s.cgroup.freeze(ctx, "1")
	if err != nil {
		_ = os.WriteFile(s.cgroup.dir+"/cgroup.freeze", []byte("0"), 0)
	}
	return err
}

func (g cgroup) freeze(ctx context.Context, to string) error {
	if err := os.WriteFile(g.dir+"/cgroup.freeze", []byte(to), 0); err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	return g.await(ctx, "frozen "+to)
}

// await waits until the events of the cgroup have a line.
func (g cgroup) await(ctx context.Context, line string) error {
	fd, err := unix.Open(g.dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open events of cgroup: %w", err)
	}
	defer unix.Close(fd)
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("wait for cgroup: %w", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(end, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken
		}
		unix.Close(end)
	}()
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("read events of cgroup: %w", err)
		}
		for l := range bytes.Lines(buf[:n]) {
			if string(bytes.TrimSpace(l)) == line {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The kernel wakes those who poll when the file changes.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(end), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for cgroup: %w", err)
		}
	}
}
