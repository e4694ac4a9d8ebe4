//go:build !linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

func probeVsock() error {
	return fmt.Errorf("transport vsock: %w: only on Linux", errors.ErrUnsupported)
}

func reserveCID() (*os.File, uint32, error) { return nil, 0, probeVsock() }

func (i *Instance) dialVsock(context.Context, uint32) (net.Conn, error) { return nil, probeVsock() }
