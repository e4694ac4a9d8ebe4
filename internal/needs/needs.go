// Package needs says what a test needs of its host. It is where tests are skipped: a test that asks for nothing here runs
// everywhere, and where ARCBOX_TEST_VM=1 asks for all tests with machines, those fail that cannot have one.
package needs

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Machine takes the error of an attempt to have a machine, nil for none. It skips the test where this host has no machine
// and none was asked for, and fails it for every other error.
func Machine(t testing.TB, err error) {
	t.Helper()
	switch missing := errors.Is(err, errs.ErrUnavailable) || errors.Is(err, errs.ErrUnsupported); {
	case err == nil:
	case missing && os.Getenv("ARCBOX_TEST_VM") != "1":
		t.Skip("no machine on this host:", err)
	default:
		t.Fatal(err)
	}
}

// Program returns the path of a program without which there is no machine, or nothing to judge it by. It skips and fails
// as Machine does.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("ARCBOX_TEST_VM") != "1" {
		t.Skip("missing on this host:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Root skips the test of what only root can do, for other users.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("for root only:", why)
	}
}

// Support takes the error of what not every file system can do, nil for none. It skips the test where that is so, or where
// the user may not.
func Support(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOTTY):
		t.Skip("not here:", err)
	default:
		t.Fatal(err)
	}
}

// Unix skips the test on Windows.
func Unix(t testing.TB, why string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("not on Windows:", why)
	}
}
