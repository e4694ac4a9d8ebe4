//go:build unix

package vz

import (
	"errors"
	"syscall"
)

// isCrossDevice tells that a link failed because it would lead to another file system.
func isCrossDevice(err error) bool { return errors.Is(err, syscall.EXDEV) }
