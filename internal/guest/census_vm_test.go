package guest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCensusSeesAContainer looks at the machine with and without a container.
func TestCensusSeesAContainer(t *testing.T) {
	m := useMachine(t)
	id := m.idle(t, layers("base"))
	rep, err := m.Census(testContext(t))
	require.NoError(t, err)
	holds := func(list []string, part string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
	}
	require.True(t, holds(rep.Cgroups, id), rep.Cgroups)
	require.True(t, holds(rep.Data, id), rep.Data)
	require.True(t, holds(rep.Processes, " sleep"), rep.Processes)
	require.False(t, holds(rep.Processes, "kworker"), rep.Processes)
	require.Contains(t, rep.Mounts, "/sys/fs/cgroup")
	require.NotEmpty(t, rep.Disks)
	require.NotEmpty(t, rep.Files)
	require.Positive(t, rep.Goroutines)
}
