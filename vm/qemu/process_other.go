//go:build !linux && !darwin

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

	traceable bool
}

func (p *process) pid() int { return 0 }

func (p *process) end() error { return p.err }

func startProcess(string, []string, io.Writer, []*os.File) (*process, error) {
	return nil, fmt.Errorf("start QEMU: %w: only on Linux and macOS a QEMU is tied to the life of its owner", errors.ErrUnsupported)
}

func (p *process) kill() {}

func anonymous(string, int64) (*os.File, error) {
	return nil, fmt.Errorf("make a file in memory: %w", errors.ErrUnsupported)
}

func pair() (net.Conn, *os.File, error) {
	return nil, nil, fmt.Errorf("make a socket pair: %w", errors.ErrUnsupported)
}

func writeWith(conn net.Conn, p []byte, file *os.File) (int, error) {
	if file != nil {
		return 0, fmt.Errorf("pass a file: %w", errors.ErrUnsupported)
	}
	return conn.Write(p)
}
