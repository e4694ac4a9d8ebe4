package files

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// openLayer makes an upper directory over an image, as an overlay leaves it.
func openLayer(t *testing.T) (l Layer, upper, image string) {
	open := func(dir string) int {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	upper, image = t.TempDir(), t.TempDir()
	for _, d := range []string{"same", "gone", "opaque/sub", "touched", "file/was/dir", "etc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(image, d), 0o755))
	}
	for _, f := range []string{"f", "gone/x", "opaque/a", "opaque/c", "opaque/z", "touched/f", "etc/passwd"} {
		require.NoError(t, os.WriteFile(filepath.Join(image, f), []byte("old"), 0o644))
	}
	return Layer{Upper: open(upper), Image: open(image)}, upper, image
}

func whiteoutAt(t *testing.T, dir, name string) {
	require.NoError(t, unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR, 0))
}

func TestLayer(t *testing.T) {
	l, upper, image := openLayer(t)
	for _, d := range []string{"opaque", "touched", "new", "same", "dev", "proc", "sys", "etc"} {
		require.NoError(t, os.Mkdir(filepath.Join(upper, d), 0o755))
	}
	for _, f := range []string{"opaque/b", "opaque/c", "touched/g", "new/n", "file", "etc/hosts", "etc/resolv.conf"} {
		require.NoError(t, os.WriteFile(filepath.Join(upper, f), nil, 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(upper, "etc/hostname"), []byte("the container's own"), 0o644))
	require.NoError(t, unix.Setxattr(filepath.Join(upper, "opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	whiteoutAt(t, upper, "gone")
	whiteoutAt(t, upper, "never-was")
	whiteoutAt(t, upper, "touched/f")
	for _, d := range []string{"same", "touched"} { // a copy up keeps the time
		st, err := os.Stat(filepath.Join(image, d))
		require.NoError(t, err)
		require.NoError(t, os.Chtimes(filepath.Join(upper, d), st.ModTime(), st.ModTime()))
	}
	want := []api.Change{
		{Path: "/etc", Kind: "modified"}, {Path: "/etc/hostname", Kind: "added"},
		{Path: "/file", Kind: "modified"}, {Path: "/gone", Kind: "deleted"}, {Path: "/new", Kind: "added"}, {Path: "/new/n", Kind: "added"},
		{Path: "/opaque", Kind: "modified"}, {Path: "/opaque/a", Kind: "deleted"}, {Path: "/opaque/b", Kind: "added"},
		{Path: "/opaque/c", Kind: "modified"}, {Path: "/opaque/sub", Kind: "deleted"}, {Path: "/opaque/z", Kind: "deleted"},
		{Path: "/touched", Kind: "modified"}, {Path: "/touched/f", Kind: "deleted"}, {Path: "/touched/g", Kind: "added"},
	}
	rep, err := l.Diff(context.Background(), "")
	require.NoError(t, err)
	require.Equal(t, want, rep.Changes)
	for i, c := range want {
		rep, err := l.Diff(context.Background(), c.Path)
		require.NoError(t, err)
		require.Equal(t, append([]api.Change(nil), want[i+1:]...), rep.Changes, c.Path)
	}
	var b bytes.Buffer
	require.NoError(t, l.WriteTar(context.Background(), &b))
	require.Equal(t, []string{
		"etc/", "etc/hostname", "file", ".wh.gone", ".wh.never-was", "new/", "new/n", "opaque/", "opaque/.wh..wh..opq", "opaque/b", "opaque/c",
		"same/", "touched/", "touched/.wh.f", "touched/g",
	}, names(t, b.Bytes()))
	require.NotContains(t, b.String(), "overlay", "attributes of the overlay stay behind")
}

func TestLayerRefusesNamesOfWhiteouts(t *testing.T) {
	l, upper, _ := openLayer(t)
	require.NoError(t, os.WriteFile(filepath.Join(upper, ".wh.f"), nil, 0o644))
	require.ErrorIs(t, l.WriteTar(context.Background(), &bytes.Buffer{}), errs.ErrUnsupported)
}

func TestDiffComesInParts(t *testing.T) {
	l, upper, _ := openLayer(t)
	const n = 20_000
	for i := range n {
		require.NoError(t, os.WriteFile(filepath.Join(upper, "a-rather-long-name-"+strconv.Itoa(i)), nil, 0o644))
	}
	var all []api.Change
	after := ""
	for parts := 0; ; parts++ {
		rep, err := l.Diff(context.Background(), after)
		require.NoError(t, err)
		all = append(all, rep.Changes...)
		if !rep.More {
			require.Greater(t, parts, 1)
			break
		}
		after = all[len(all)-1].Path
	}
	require.Len(t, all, n)
}

func TestOrderOfPaths(t *testing.T) {
	require.Less(t, key("/a/b"), key("/a-b"))
	require.Less(t, key("/a"), key("/a/b"))
}
