package vmtest

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// possessions lists the child processes of this process and its open descriptors that are more than the runtime's own.
func possessions(t testing.TB) []string {
	var all []string
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(t, err)
	for _, f := range tasks {
		if b, err := os.ReadFile(f); err == nil { // the thread may have ended
			for _, pid := range strings.Fields(string(b)) {
				all = append(all, "process "+pid)
			}
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all = append(all, "descriptor "+e.Name()+" "+to)
		}
	}
	sort.Strings(all)
	return all
}
