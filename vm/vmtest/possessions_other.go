//go:build !linux

package vmtest

import "testing"

// possessions lists nothing: only Linux tells.
func possessions(testing.TB) []string { return nil }
