//go:build unix

package main

import (
	"fmt"
	"os"
	"syscall"
)

// become replaces this program by another one, which so gets the signals that are meant for it, such as those of go test.
func become(program string, args []string) (int, error) {
	err := syscall.Exec(program, append([]string{program}, args...), os.Environ())
	return 1, fmt.Errorf("run %s: %w", program, err)
}
