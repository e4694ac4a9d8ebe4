//go:build !darwin || !cgo

package vz

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// thisSystem is one that has no Virtualization framework, or a program that was built without it.
func thisSystem() system {
	err := fmt.Errorf("virtualization framework: %w on %s", errs.ErrUnsupported, runtime.GOOS)
	if runtime.GOOS == "darwin" {
		err = fmt.Errorf("virtualization framework: %w by this program: build it with cgo, on a Mac with the command line tools of Xcode", errs.ErrUnsupported)
	}
	return system{
		look: func() (host, error) { return host{}, err },
		open: func(_ plan, nic *os.File) (framework, io.ReadCloser, error) {
			nic.Close() // nil is none
			return nil, nil, err
		},
		saves: func(plan) error { return err },
	}
}
