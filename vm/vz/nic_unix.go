//go:build unix

package vz

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sizes of a socket's buffers, in bytes. The framework wants the one for receiving to be at least twice the other, four
// times for speed; the system's defaults hold a few frames only, and what does not fit is an error of the sender.
const (
	nicSend    = 1 << 20
	nicReceive = 4 << 20
)

// nicPair returns two connected sockets of messages, each of which is an Ethernet frame: one for this process, one for the
// framework.
func nicPair() (ours net.Conn, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // Darwin cannot make sockets that no child inherits
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make the network interface: %w", err)
	}
	file, theirs := os.NewFile(uintptr(fds[0]), "nic"), os.NewFile(uintptr(fds[1]), "nic")
	defer file.Close()
	for _, fd := range fds {
		for option, size := range map[int]int{unix.SO_SNDBUF: nicSend, unix.SO_RCVBUF: nicReceive} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size); err != nil {
				theirs.Close()
				return nil, nil, fmt.Errorf("size the buffers of the network interface: %w", err)
			}
		}
	}
	if ours, err = net.FileConn(file); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make the network interface: %w", err)
	}
	return ours, theirs, nil
}
