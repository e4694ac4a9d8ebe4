//go:build !linux

package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

const firstFD = 3

// process is a running QEMU.
type process struct {
	done chan struct{}
	err  error
}

func startProcess(string, []string, io.Writer, []*os.File) (*process, error) {
	return nil, fmt.Errorf("start QEMU: %w: only on Linux a QEMU can be tied to the life of its owner", errors.ErrUnsupported)
}

func (p *process) kill() {}

func pair() (net.Conn, *os.File, error) {
	return nil, nil, fmt.Errorf("make a socket pair: %w", errors.ErrUnsupported)
}
