//go:build !linux || !amd64

package checkpoint

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Save returns ErrUnsupported: processes are saved on Linux on amd64.
func Save(context.Context, int, string, Spec) error {
	return fmt.Errorf("save a process: %w on this system", errs.ErrUnsupported)
}

// Check returns ErrUnsupported.
func Check(path string) error {
	return fmt.Errorf("go on from %s: %w on this system", path, errs.ErrUnsupported)
}

// Look returns ErrUnsupported.
func Look(int) (Used, error) {
	return Used{}, fmt.Errorf("look at a process: %w on this system", errs.ErrUnsupported)
}

// Preload returns ErrUnsupported.
func Preload(path string, _, _ Used) error {
	return fmt.Errorf("preload memory in %s: %w on this system", path, errs.ErrUnsupported)
}
