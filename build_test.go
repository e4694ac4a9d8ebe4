package arcbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

const program = `package main

import (
	"fmt"
	"os"
)

func main() {
	page, err := os.ReadFile("page")
	fmt.Println(os.Args[1:], os.Getuid(), os.Getenv("A"), os.Getenv("B"), string(page), err)
	_, err = os.Stat("/bin")
	fmt.Println(os.IsNotExist(err))
}
`

// TestBuildImageRuns runs a static Go program in an image that has nothing but it and a file.
func TestBuildImageRuns(t *testing.T) {
	rt := shared.get(t)
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(src, []byte(program), 0o600))
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", bin, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Chmod(bin, 0o600), "the mode on the host does not matter")

	ctx := testContext(t)
	spec := arcbox.ImageSpec{
		Names: []string{"program:1"},
		Layers: []arcbox.ImageLayer{
			{Files: map[string]arcbox.ImageFile{"/program": {Path: bin}}},
			{FS: fstest.MapFS{"page": {Data: []byte("hello")}}, Dir: "/srv"},
		},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/program"}, Cmd: []string{"x"}, WorkingDir: "/srv", User: "1000", Env: []string{"A=1"}},
	}
	img, err := rt.BuildImage(ctx, spec, arcbox.BuildOptions{})
	require.NoError(t, err)
	require.Equal(t, result{stdout: "[x] 1000 1  hello <nil>\ntrue\n"}, run(t, rt, arcbox.ContainerSpec{Image: "program:1"}, arcbox.RunOptions{}))
	again, err := rt.BuildImage(ctx, spec, arcbox.BuildOptions{})
	require.NoError(t, err)
	require.Equal(t, img, again)

	// On a base the configuration is merged.
	_, err = rt.BuildImage(ctx, arcbox.ImageSpec{
		Names: []string{"program:2"}, Base: "program:1",
		Config: ocispec.ImageConfig{Env: []string{"A=2", "B=3"}, Labels: map[string]string{"l": "v"}, Cmd: []string{"y"}},
	}, arcbox.BuildOptions{})
	require.NoError(t, err)
	require.Equal(t, result{stdout: "[y] 1000 2 3 hello <nil>\ntrue\n"}, run(t, rt, arcbox.ContainerSpec{Image: "program:2"}, arcbox.RunOptions{}))
	_, err = rt.BuildImage(ctx, arcbox.ImageSpec{
		Names: []string{"program:3"}, Base: "busybox:test", Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/echo"}},
	}, arcbox.BuildOptions{})
	require.NoError(t, err)
	require.Equal(t, result{stdout: "\n"}, run(t, rt, arcbox.ContainerSpec{Image: "program:3"}, arcbox.RunOptions{}), "without the base's sh")

	_, err = rt.BuildImage(ctx, arcbox.ImageSpec{Base: "none"}, arcbox.BuildOptions{Pull: arcbox.PullNever})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = rt.BuildImage(ctx, arcbox.ImageSpec{}, arcbox.BuildOptions{})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	require.ErrorContains(t, err, "BuildImage")
}
