//go:build !unix

package main

import (
	"errors"
	"fmt"
)

// become is for macOS.
func become(program string, _ []string) (int, error) {
	return 1, fmt.Errorf("run %s: %w", program, errors.ErrUnsupported)
}
