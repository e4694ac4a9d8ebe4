//go:build !unix && !windows

package fsx

import (
	"errors"
	"os"
)

func lockFile(*os.File, bool) error { return errors.ErrUnsupported }

func unlockFile(*os.File) {}
