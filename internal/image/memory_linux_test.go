package image

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/require"
)

const pullEnv = "ARCBOX_IMAGE_PULL"

// TestPullMemoryStaysSmall pulls an image of 52 MB, all layers at once, in a process of its own, and asks the kernel for
// the most that it had in memory.
func TestPullMemoryStaysSmall(t *testing.T) {
	if ref := os.Getenv(pullEnv); ref != "" {
		s, err := Open(Config{Dir: t.TempDir(), Keychain: authn.NewMultiKeychain(), Limits: Limits{Parallel: 5}})
		require.NoError(t, err)
		_, err = s.Pull(t.Context(), ref, PullOptions{})
		require.NoError(t, err)
		require.NoError(t, s.Close())
		status, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		fmt.Println(string(status))
		return
	}
	srv := imagetest.NewRegistry(t)
	var img imagetest.Image
	for i, pack := range []func([]byte) imagetest.Layer{
		imagetest.Plain, imagetest.Gzip, func(b []byte) imagetest.Layer { return imagetest.Zstd(t, b) }, imagetest.Plain, imagetest.Plain,
	} {
		size := 2 << 20
		if i != 1 && i != 2 { // packing takes long under the race detector
			size = 16 << 20
		}
		img.Layers = append(img.Layers, pack(imagetest.Tar(t, reg(fmt.Sprint(i), string(noise(uint64(i), size))))))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPullMemoryStaysSmall$")
	cmd.Env = append(os.Environ(), pullEnv+"="+srv.Push(t, "large", "1", img))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	_, rest, ok := bytes.Cut(out, []byte("VmHWM:"))
	require.True(t, ok, string(out))
	var kib int
	_, err = fmt.Sscan(strings.TrimSpace(string(rest)), &kib)
	require.NoError(t, err)
	t.Logf("at most %d MiB for 52", kib>>10)
	require.Less(t, kib, 100<<10*raceFactor)
}
