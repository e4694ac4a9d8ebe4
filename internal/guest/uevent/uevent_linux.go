package uevent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Conn is an open connection to the kernel. Events gather in it from Listen on. It lasts as long as the process.
type Conn struct{ f *os.File }

// Listen opens a connection. Open it before looking at what is there already, so that nothing falls between.
func Listen() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	// A burst of disks must not overflow the queue. An overflow is noticed too: see Run.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return &Conn{os.NewFile(uintptr(fd), "uevent")}, nil
}

// Run calls handle for each event until the connection fails.
func (c *Conn) Run(handle func(Event)) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			handle(Event{Action: Rescan})
		case err != nil:
			return fmt.Errorf("read uevents: %w", err)
		default:
			if e, ok := Parse(buf[:n]); ok {
				handle(e)
			}
		}
	}
}
