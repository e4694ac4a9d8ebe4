package imagetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrograms(t *testing.T) {
	img, err := Programs(t)
	require.NoError(t, err)
	require.Len(t, img.Layers, 2)
	have := map[string]*tar.Header{}
	for _, l := range img.Layers {
		for r := tar.NewReader(bytes.NewReader(l.Tar)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			have[h.Name] = h
		}
	}
	t.Log(len(have), "files,", len(img.Layers[1].Tar)>>20, "MiB")
	for _, name := range []string{"usr/bin/redis-server", "usr/bin/redis-cli", "usr/sbin/nginx", "usr/bin/python3", "usr/bin/busybox", "bin"} {
		require.Contains(t, have, name)
	}
	require.Equal(t, 101, have["var/lib/redis"].Uid)
}

func TestDamagedRootIsNotUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "root")
	for _, text := range []string{"", "short", "a long text that begins with no checksum of the rest"} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := readSummed(file)
		require.Error(t, err)
		for range 2 { // the second finds what the first has kept
			data, err := Cached(t.Context(), file, func() ([]byte, error) { text += "x"; return []byte(text), nil })
			require.NoError(t, err)
			require.Equal(t, text, string(data))
		}
	}
}

func TestClosureIsWhatProgramsNeedToRun(t *testing.T) {
	graph := "app\n  PreDepends: init\n  Depends: libllvm14\n  Depends: postgresql-15\n  Depends: postgresql-common\n  Depends: liba\n    libalias\n |Depends: libb\n  Depends: <libvirtual>\n    libreal\n" +
		"liba\n  Depends: libc\n  Depends: adduser\nadduser\n  Depends: libother\n<libvirtual>\nlibc\n  Depends: liba\n"
	require.Equal(t, []string{"app", "liba", "libb", "libc", "postgresql-15"}, closure(graph, []string{"app"}))
}
