package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func TestContainerPath(t *testing.T) {
	for text, want := range map[string][2]string{
		"web:/etc": {"web", "/etc"}, "web:a:b": {"web", "a:b"}, "web:": {"web", ""}, "./web:x": {}, "/web:x": {}, "-": {}, ":x": {}, "x:/": {"x", "/"}, "plain": {},
	} {
		ref, path, ok := containerPath(text)
		require.Equal(t, want[0] != "", ok, text)
		if ok {
			require.Equal(t, want, [2]string{ref, path}, text)
		}
	}
}

func TestPackAndUnpack(t *testing.T) {
	needs.Unix(t, "symbolic links take a privilege there")
	from := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(from, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "sub", "file"), []byte("text"), 0o640))
	require.NoError(t, os.Symlink("sub/file", filepath.Join(from, "link")))
	require.NoError(t, os.Chmod(filepath.Join(from, "sub"), 0o500))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(from, "sub"), 0o700) })
	for suffix, prefix := range map[string]string{"": "tree", "/.": ""} {
		var b bytes.Buffer
		require.NoError(t, pack(&b, from+suffix))
		to := t.TempDir()
		require.NoError(t, unpack(&b, to))
		at := filepath.Join(to, prefix)
		text, err := os.ReadFile(filepath.Join(at, "link"))
		require.NoError(t, err)
		require.Equal(t, "text", string(text))
		info, err := os.Stat(filepath.Join(at, "sub"))
		require.NoError(t, err)
		require.EqualValues(t, 0o500, info.Mode().Perm())
		require.NoError(t, os.Chmod(filepath.Join(at, "sub"), 0o700))
	}
}

// An archive cannot write outside of the directory.
func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":      {{Name: "../out", Typeflag: tar.TypeReg}},
		"link":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/out", Typeflag: tar.TypeReg}},
		"hard link": {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"mode":      {{Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../secret"}},
	} {
		base := t.TempDir()
		secret := filepath.Join(base, "secret")
		require.NoError(t, os.WriteFile(secret, []byte("s"), 0o600))
		dir := filepath.Join(base, "dir")
		require.NoError(t, os.Mkdir(dir, 0o755))
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, h := range entries {
			require.NoError(t, tw.WriteHeader(&h))
		}
		require.NoError(t, tw.Close())
		require.Error(t, unpack(&b, dir), name)
		require.NoFileExists(t, filepath.Join(base, "out"), name)
		info, err := os.Stat(secret)
		require.NoError(t, err)
		require.EqualValues(t, 0o600, info.Mode().Perm(), name)
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	_ = tw.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."})
	_ = tw.WriteHeader(&tar.Header{Name: "l/out", Typeflag: tar.TypeReg, Mode: 0o644})
	_ = tw.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "dir")
		require.NoError(t, os.Mkdir(dir, 0o755))
		_ = unpack(bytes.NewReader(archive), dir)
		list, err := os.ReadDir(base)
		require.NoError(t, err)
		require.Len(t, list, 1)
	})
}
