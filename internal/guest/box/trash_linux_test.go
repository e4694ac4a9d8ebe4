package box

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// deepTree makes a tree of the depth with a file in each directory.
func deepTree(t *testing.T, top string, depth int) {
	t.Helper()
	require.NoError(t, os.Mkdir(top, 0o700))
	fd, err := unix.Open(top, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range depth {
		require.NoError(t, unix.Mkdirat(fd, "directory", 0o000))
		f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(f))
		next, err := unix.Openat(fd, "directory", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	require.NoError(t, unix.Close(fd))
}

func TestTrashDeletesEverything(t *testing.T) {
	needs.Root(t, "the agent may enter every directory")
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	require.NoError(t, os.Mkdir(canary, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(canary, "file"), nil, 0o600))
	tr := newTrash(filepath.Join(dir, "trash"))
	require.NoError(t, os.Mkdir(tr.dir, 0o700))
	deepTree(t, filepath.Join(dir, "deep"), 5000)
	require.NoError(t, os.Symlink(canary, filepath.Join(dir, "deep", "link")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "deep", "fifo"), 0o600))
	wide := filepath.Join(dir, "wide")
	require.NoError(t, os.Mkdir(wide, 0o700))
	for i := range 2000 {
		name := filepath.Join(wide, tr.name())
		if i%2 == 0 {
			require.NoError(t, os.Mkdir(name, 0o700))
			name += "/file"
		}
		require.NoError(t, os.WriteFile(name, nil, 0o400))
	}
	for _, name := range []string{"deep", "wide", "none"} {
		require.NoError(t, tr.take(filepath.Join(dir, name)))
	}
	require.NoError(t, os.Symlink(canary, filepath.Join(tr.dir, "link")))
	for tr.empty(t.Context()) {
	}
	entries, err := os.ReadDir(tr.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.FileExists(t, filepath.Join(canary, "file"), "links are not followed")
}

// TestTrashDeletesWhatIsImmutable makes what a privileged container can: files and directories that nobody may change.
func TestTrashDeletesWhatIsImmutable(t *testing.T) {
	dir := t.TempDir()
	tr := newTrash(filepath.Join(dir, "trash"))
	require.NoError(t, os.Mkdir(tr.dir, 0o700))
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.MkdirAll(tree+"/a/b", 0o700))
	require.NoError(t, os.WriteFile(tree+"/a/b/file", nil, 0o600))
	for _, name := range []string{tree + "/a/b/file", tree + "/a/b", tree + "/a"} {
		f, err := os.Open(name)
		require.NoError(t, err)
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, unix.STATX_ATTR_IMMUTABLE)
		require.NoError(t, f.Close())
		needs.Support(t, err) // of immutable files
	}
	require.NoError(t, tr.take(tree))
	for tr.empty(t.Context()) {
	}
	entries, err := os.ReadDir(tr.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestTrashStops(t *testing.T) {
	dir := t.TempDir()
	tr := newTrash(filepath.Join(dir, "trash"))
	require.NoError(t, os.Mkdir(tr.dir, 0o700))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tr.run(ctx)
	}()
	cancel()
	<-done
	deepTree(t, filepath.Join(dir, "deep"), 10)
	require.NoError(t, tr.take(filepath.Join(dir, "deep")))
	require.False(t, tr.empty(ctx))
	entries, err := os.ReadDir(tr.dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}
