//go:build !linux

package needs

import "testing"

// SmallDir skips the test: it mounts a file system of Linux.
func SmallDir(t testing.TB, _ string) string {
	t.Helper()
	t.Skip("mounting a small file system is for Linux")
	return ""
}

// Grow is not reached.
func Grow(t testing.TB, _, _ string) { t.Fatal("there is no small file system") }
