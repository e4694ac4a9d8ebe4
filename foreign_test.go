package arcbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// TestForeignGuest runs a container in a machine of another architecture than the host's: its own kernel, agent and
// image, all emulated.
func TestForeignGuest(t *testing.T) {
	arch := "arm64"
	if runtime.GOARCH == arch {
		arch = "amd64"
	}
	src, exe := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "exe")
	require.NoError(t, os.WriteFile(src, []byte("package main\nimport \"runtime\"\nfunc main() { println(runtime.GOARCH) }\n"), 0o600))
	build := exec.CommandContext(testContext(t), "go", "build", "-o", exe, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile(exe)
	require.NoError(t, err)

	cfg := testConfig(t)
	cfg.VM.Arch = arch
	rt := newRuntime(t, cfg)
	load(t, rt, imagetest.Image{
		Names: []string{"foreign:test"}, Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{Cmd: []string{"/exe"}},
		Layers: []imagetest.Layer{imagetest.Files(t, map[string]imagetest.File{"exe": {Mode: 0o755, Data: data}})},
	})
	_, err = rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "foreign:test"}, arcbox.CreateOptions{})
	needs.Machine(t, err)
	got := run(t, rt, arcbox.ContainerSpec{Image: "foreign:test"}, arcbox.RunOptions{})
	require.Equal(t, arch+"\n", got.stderr)
	require.Zero(t, got.exit.Code)
}
