package machine

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/share"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

func TestWhatLiesInTheSharedDirectory(t *testing.T) {
	dir, other := filepath.Join(t.TempDir(), "dir"), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
	require.NoError(t, os.Symlink(other, filepath.Join(dir, "out")))
	require.NoError(t, os.Symlink(filepath.Join(dir, "a"), filepath.Join(other, "in")))
	for path, want := range map[string]string{
		dir: ".", filepath.Join(dir, "a", "b"): "a/b", filepath.Join(other, "in", "b"): "a/b",
		filepath.Join(dir, "out"): "", other: "", dir + "x": "", filepath.Dir(dir): "", filepath.Join(dir, "none"): "",
	} {
		got, ok := below(dir, share.Source{Path: path})
		require.Equal(t, want, got, path)
		require.Equal(t, want != "", ok, path)
	}
	_, ok := below(dir, share.Source{Path: dir, FS: fstest.MapFS{}})
	require.False(t, ok)
	_, ok = below(filepath.Join(dir, "none"), share.Source{Path: dir})
	require.False(t, ok)
}

// sharing is a driver that can share directories.
type sharing struct{ vmtest.Fake }

func (*sharing) Capabilities() vm.Capabilities { return vm.Capabilities{Shares: true, Rosetta: true} }

func TestSharedDirIsGivenToDriversThatCan(t *testing.T) {
	var spec vm.Spec
	(&Config{SharedDir: "/src", Driver: &vmtest.Fake{}}).addShares(&spec)
	require.Empty(t, spec)
	(&Config{Driver: &sharing{}}).addShares(&spec)
	require.Equal(t, vm.Spec{Rosetta: true}, spec)
	(&Config{SharedDir: "/src", Driver: &sharing{}}).addShares(&spec)
	require.Equal(t, vm.Spec{
		Shares: []vm.Share{{Tag: "arcbox.host", Path: "/src"}}, Cmdline: "arcbox.host=virtiofs:arcbox.host", Rosetta: true,
	}, spec)
}
