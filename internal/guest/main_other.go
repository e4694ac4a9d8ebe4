//go:build !linux

package guest

import (
	"errors"
	"io"
)

// Main is the agent. It runs on Linux only: elsewhere it returns ErrUnsupported.
func Main(io.Writer) error { return errors.ErrUnsupported }
