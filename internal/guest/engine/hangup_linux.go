package engine

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangup returns when the other side has closed a connection altogether that it had closed for one direction, or ctx has
// ended. Nobody reads from the connection meanwhile.
func hangup(ctx context.Context, c net.Conn) {
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			// Each change of the socket makes it look again; closing the connection, as the end of ctx does, ends it.
			_ = raw.Read(func(fd uintptr) bool {
				p := []unix.PollFd{{Fd: int32(fd)}}
				n, err := unix.Poll(p, 0)
				return err != nil && err != unix.EINTR || n > 0
			})
			return
		}
	}
	<-ctx.Done()
}
