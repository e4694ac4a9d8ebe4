package box

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{2: 1, 3: 2, 256: 35, 512: 59, 1024: 100, 2048: 174, 262143: 10000, 262144: 10000} {
		require.Equal(t, want, cpuWeight(shares), shares)
	}
	last := uint64(0)
	for s := uint64(2); s <= 262144; s += 7 {
		w := cpuWeight(s)
		require.GreaterOrEqual(t, w, last)
		require.LessOrEqual(t, w, uint64(10000))
		last = w
	}
}

func TestMissingControllers(t *testing.T) {
	// A directory that is no cgroup has none of the files, and only root could be kept from making them: the open without
	// creating finds nothing.
	g := cgroup{t.TempDir() + "/none"}
	for _, r := range []api.Resources{{Memory: 8 << 20}, {CPUQuota: 1000}, {CPUShares: 2}, {CPUSet: "0"}, {PIDs: 1}, {IOWeight: 10}} {
		require.ErrorIs(t, g.limit(r, true), errs.ErrUnsupported, "%+v", r)
	}
	require.NoError(t, g.limit(api.Resources{MemorySwap: -1}, true), "no limit is no loss")
	require.NoError(t, g.limit(api.Resources{}, true))
}
