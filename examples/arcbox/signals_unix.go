//go:build unix

package main

import (
	"os"
	"syscall"
)

// proxied are the signals that a container gets, by name.
func proxied() map[os.Signal]string {
	return map[os.Signal]string{
		syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
		syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
	}
}

// resized is the signal that tells of a terminal's new size.
func resized() os.Signal { return syscall.SIGWINCH }
