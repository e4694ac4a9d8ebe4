package share

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// systemErrors reads the numbers of a system's errors from where Go has them.
func systemErrors(t *testing.T, file string) map[string]int {
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "src", "syscall", file))
	require.NoError(t, err)
	list := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\t(E[A-Z0-9]+)\s+= Errno\((0x[0-9a-f]+)\)`).FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.ParseInt(m[2], 0, 32)
		require.NoError(t, err)
		list[m[1]] = int(n)
	}
	require.Greater(t, len(list), 80)
	return list
}

// TestErrorsOfMacOS compares all errors that macOS and Linux have by the same name.
func TestErrorsOfMacOS(t *testing.T) {
	darwin, linux := systemErrors(t, "zerrors_darwin_arm64.go"), systemErrors(t, "zerrors_linux_arm64.go")
	linux["ENOATTR"] = linux["ENODATA"]
	for name, n := range darwin {
		want, ok := linux[name]
		if !ok {
			want = int(eIO)
		}
		require.EqualValues(t, want, fromDarwin(n), name)
	}
	for _, n := range []int{-1, 0, 107, 1 << 30} {
		require.Equal(t, eIO, fromDarwin(n))
	}
}
