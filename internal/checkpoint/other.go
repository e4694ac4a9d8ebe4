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

// Written returns ErrUnsupported.
func Written(int) ([]Range, error) {
	return nil, fmt.Errorf("look at what was written: %w on this system", errs.ErrUnsupported)
}

// Preload returns ErrUnsupported.
func Preload(path string, _ []Range) error {
	return fmt.Errorf("preload memory in %s: %w on this system", path, errs.ErrUnsupported)
}
