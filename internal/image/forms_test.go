package image

import (
	"os/exec"
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

func TestBusyboxImage(t *testing.T) {
	img, err := imagetest.Busybox(t)
	require.NoError(t, err, "install busybox-static")
	s := openStore(t)
	got, err := load(t, s, imagetest.OCIArchive(t, img))
	require.NoError(t, err)
	disks, err := s.Layers(t.Context(), got[0])
	require.NoError(t, err)
	requireClean(t, disks[0].Path)
	names := listExt4(t, disks[0].Path)
	require.Equal(t, "link busybox", names["bin/sh"])
	require.Equal(t, "dir 1777", names["tmp"])
	require.NotContains(t, names, "lost+found")
}
