package machines

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestSnapshotsSurviveAndGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	s, ctx := NewSnapshots(dir), t.Context()
	list, err := s.List()
	require.NoError(t, err)
	require.Empty(t, list)
	fill := func(dir string, snap *Snapshot) error {
		snap.CPUs, snap.Containers = 2, []byte(`["x"]`)
		return os.WriteFile(filepath.Join(dir, "memory"), make([]byte, 9000), 0o600)
	}
	one, err := s.Create(ctx, Snapshot{Name: "one", Machine: "m", Labels: map[string]string{"k": "v"}}, true, fill)
	require.NoError(t, err)
	require.GreaterOrEqual(t, one.Size, int64(9000))
	_, err = s.Create(ctx, Snapshot{Name: "one"}, false, fill)
	require.ErrorIs(t, err, errs.ErrExists)
	_, err = s.Create(ctx, Snapshot{Name: "../x"}, false, fill)
	require.ErrorIs(t, err, errs.ErrInvalid)
	boom := errors.New("boom")
	_, err = s.Create(ctx, Snapshot{}, false, func(string, *Snapshot) error { return boom })
	require.ErrorIs(t, err, boom)
	two, err := s.Create(ctx, Snapshot{Machine: "m"}, false, fill)
	require.NoError(t, err)

	require.NoError(t, os.Mkdir(filepath.Join(dir, ".removed-x"), 0o700)) // what a killed program leaves
	s = NewSnapshots(dir)
	require.NoDirExists(t, filepath.Join(dir, ".removed-x"))
	list, err = s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	for _, ref := range []string{one.ID, "one", one.ID[:8]} {
		got, err := s.Get(ref)
		require.NoError(t, err)
		require.Equal(t, one.Labels, got.Labels)
		require.FileExists(t, filepath.Join(s.Path(got), "memory"))
	}
	for _, ref := range []string{"", "..", "none", "../" + one.ID} {
		_, err := s.Remove(ref)
		require.ErrorIs(t, err, errs.ErrNotFound, ref)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, two.ID, snapshotFile), []byte("{"), 0o600))
	list, err = s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = s.Remove(two.ID)
	require.NoError(t, err, "a damaged one can be removed")
	_, err = s.Remove("one")
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, e.IsDir(), e.Name())
	}
}

func FuzzSnapshot(f *testing.F) {
	const id = "0123456789abcdef"
	f.Add([]byte(`{"version":1,"snapshot":{"id":"0123456789abcdef","name":"a","machine":"m","cpus":1,"memory":5,"containers":[]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSnapshot(b, id); err == nil {
			require.Equal(t, id, s.ID)
		}
	})
}
