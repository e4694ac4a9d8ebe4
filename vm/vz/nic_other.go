//go:build !unix

package vz

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// nicPair is for systems with sockets that the framework takes.
func nicPair() (net.Conn, *os.File, error) {
	return nil, nil, fmt.Errorf("make the network interface: %w", errors.ErrUnsupported)
}
