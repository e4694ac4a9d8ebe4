//go:build !linux

package guest

import "errors"

// Main is the agent. It runs on Linux only: elsewhere it returns ErrUnsupported.
func Main() error { return errors.ErrUnsupported }
