package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/stretchr/testify/require"
)

// readExt4 returns a file of a layer image.
func readExt4(t testing.TB, image, path string) []byte {
	t.Helper()
	out, err := exec.Command("/sbin/debugfs", "-R", "cat "+path, image).Output()
	require.NoError(t, err)
	return out
}

func TestSmoke(t *testing.T) {
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	dir := t.TempDir()
	imagetest.WriteLayout(t, dir, img)
	for name, load := range map[string]func(s *Store) ([]Image, error){
		"layout": func(s *Store) ([]Image, error) { return s.Load(t.Context(), dir, LoadOptions{}) },
		"oci": func(s *Store) ([]Image, error) {
			return s.LoadStream(t.Context(), bytes.NewReader(imagetest.OCIArchive(t, img)), LoadOptions{})
		},
		"docker": func(s *Store) ([]Image, error) {
			return s.LoadStream(t.Context(), bytes.NewReader(imagetest.DockerArchive(t, img)), LoadOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			got, err := load(s)
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.Equal(t, img.ID(t), got[0].ID)
			back, err := s.Get(t.Context(), "busybox:test")
			require.NoError(t, err)
			require.Equal(t, got[0], back)
			disks, err := s.Layers(t.Context(), back)
			require.NoError(t, err)
			require.Len(t, disks, 1)
			out, err := exec.Command("/sbin/e2fsck", "-fn", disks[0].Path).CombinedOutput()
			require.NoError(t, err, string(out))
			out, err = exec.Command("/sbin/debugfs", "-R", "ls -l /", disks[0].Path).CombinedOutput()
			require.NoError(t, err)
			t.Log(string(out))
			ents, err := os.ReadDir(filepath.Join(s.dir, "ingest", filepath.Base(s.blobs.session)))
			require.NoError(t, err)
			require.Len(t, ents, 1, "only the lock")
		})
	}
}
