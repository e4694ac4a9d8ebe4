//go:build !linux

package guest

import (
	"errors"
	"os"
)

// Main is the agent. It runs on Linux only: elsewhere it returns ErrUnsupported.
func Main(*os.File) error { return errors.ErrUnsupported }

// Init tells whether the program is the init of a container. It is not, but on Linux.
func Init(_ []string, _, _, _ *os.File) (code int, is bool) { return 0, false }
