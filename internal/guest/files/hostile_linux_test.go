package files

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// TestSwap copies in and out while the container swaps a directory for a link that leads out. openRoot checks that
// nothing outside was touched.
func TestSwap(t *testing.T) {
	root, dir := openRoot(t)
	inside, other := filepath.Join(dir, "d"), filepath.Join(dir, "other")
	require.NoError(t, os.MkdirAll(filepath.Join(inside, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(inside, "sub", "file"), []byte("mine"), 0o644))
	require.NoError(t, os.Symlink(filepath.Join(filepath.Dir(dir), "canary"), other))
	rel := filepath.Join(inside, "rel")
	require.NoError(t, os.Symlink("../../../canary", rel))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(inside, "sub"), unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(inside, "sub"), unix.AT_FDCWD, rel, unix.RENAME_EXCHANGE)
			}
		}
	})
	archive := makeTar(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "sub/", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeReg, Name: "sub/file", Mode: 0o777, Uname: "changed"},
		tar.Header{Typeflag: tar.TypeReg, Name: "sub/new", Mode: 0o777, Uname: "new"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "sub/pipe", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeLink, Name: "sub/hard", Linkname: "sub/file"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard2", Linkname: "sub/file"},
	).Bytes()
	for range 2000 {
		_ = unpack(root, "d", bytes.NewReader(archive), Options{}) // which entries get in is a matter of luck
		src, err := OpenSource(root, "d/sub/")
		if err != nil {
			continue
		}
		var b bytes.Buffer
		require.NoError(t, src.WriteTar(context.Background(), &b))
		src.Close()
		require.NotContains(t, b.String(), "alive", "the canary's content")
	}
	close(stop)
	wg.Wait()
}

func TestFileChangesItsSize(t *testing.T) {
	root, dir := openRoot(t)
	name := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(name, bytes.Repeat([]byte("x"), 1<<20), 0o644))
	src, err := OpenSource(root, "f")
	require.NoError(t, err)
	defer src.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- src.WriteTar(context.Background(), w); w.Close() }()
	tr := tar.NewReader(r)
	h, err := tr.Next()
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, h.Size)
	require.NoError(t, os.Truncate(name, 10))
	b, err := io.ReadAll(tr)
	require.NoError(t, err)
	require.Len(t, b, 1<<20)
	require.Zero(t, b[len(b)-1])
	_, err = tr.Next()
	require.Equal(t, io.EOF, err)
	_, _ = io.Copy(io.Discard, r)
	require.NoError(t, <-done)
}

func TestDeepTrees(t *testing.T) {
	root, dir := openRoot(t)
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range 5000 { // deeper than a path can say
		require.NoError(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	src, err := OpenSource(root, "/d")
	require.NoError(t, err)
	defer src.Close()
	require.ErrorIs(t, src.WriteTar(context.Background(), io.Discard), errs.ErrInvalid)
	err = unpack(root, "/", makeTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "d"}), Options{})
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func TestCancel(t *testing.T) {
	root, dir := openRoot(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	require.NoError(t, os.Truncate(filepath.Join(dir, "f"), 1<<40))
	src, err := OpenSource(root, "f")
	require.NoError(t, err)
	defer src.Close()
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	err = src.WriteTar(ctx, writerFunc(func(p []byte) (int, error) {
		if n += len(p); n > 1<<20 {
			cancel()
		}
		return len(p), nil
	}))
	require.ErrorIs(t, err, context.Canceled)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// FuzzUnpack holds that nothing outside the root changes, whatever the archive is, and that nothing panics.
func FuzzUnpack(f *testing.F) {
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for _, h := range [][]tar.Header{
		{link("l", "../../canary"), {Typeflag: tar.TypeReg, Name: "l/file", Uname: "x"}},
		{link("l", ".."), link("l/l", "../.."), {Typeflag: tar.TypeDir, Name: "l/l/canary/", Mode: 0o777}},
		{{Typeflag: tar.TypeLink, Name: "h", Linkname: "in/../../../canary/file"}, {Typeflag: tar.TypeReg, Name: "h", Uname: "x"}},
		{{Typeflag: tar.TypeDir, Name: "d/"}, link("d", "../../canary"), {Typeflag: tar.TypeFifo, Name: "d/file"}},
		{{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{paxXattr + "user.x": "1", "mtime": "-1.5"}}},
	} {
		f.Add(makeTar(f, h...).Bytes(), false)
		f.Add(makeTar(f, h...).Bytes(), true)
	}
	f.Fuzz(func(t *testing.T, archive []byte, keep bool) {
		root, dir := openRoot(t)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "a/in"), 0o755))
		require.NoError(t, os.Symlink("../../canary", filepath.Join(dir, "a/out")))
		// A file may claim any size: the archive's own is enough.
		_ = unpack(root, "/a", io.LimitReader(bytes.NewReader(archive), 1<<20), Options{KeepOwner: keep, NoOverwrite: keep})
		src, err := OpenWhole(root)
		require.NoError(t, err)
		defer src.Close()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		left := 16 << 20
		err = src.WriteTar(ctx, writerFunc(func(p []byte) (int, error) {
			if left -= len(p); left < 0 {
				cancel()
			}
			return len(p), nil
		}))
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/", "a", "a/", "a/.", "../..", "/a/../b", ".", "..", "a//./"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse(s)
		if err != nil {
			require.ErrorIs(t, err, errs.ErrInvalid)
			return
		}
		require.True(t, filepath.IsAbs(p.dir))
		require.Equal(t, filepath.Clean(p.dir), p.dir)
		require.NotContains(t, p.base, "/")
		require.NotContains(t, []string{".", ".."}, p.base)
		require.NotContains(t, []string{"", ".."}, p.name)
		require.False(t, strings.Contains(p.name, "/"))
	})
}
