package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// TestImagesTravel imports an image, sends it through a registry and an archive, and removes it again.
func TestImagesTravel(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	one, two := t.TempDir(), t.TempDir()
	must := func(dir string, args ...string) string {
		t.Helper()
		code, stdout, stderr := call(t, nil, append([]string{"--data-dir", dir}, args...)...)
		require.Zero(t, code, stderr)
		return stdout
	}
	root := filepath.Join(t.TempDir(), "root.tar")
	require.NoError(t, os.WriteFile(root, imagetest.Tar(t, imagetest.Entry{Name: "f", File: imagetest.File{Type: tar.TypeReg, Data: bytes.Repeat([]byte("x"), 1<<20)}}), 0o600))
	ref := reg.Host + "/team/app:1"
	id := must(one, "import", "-m", "hello", "-c", `CMD ["/f", "x"]`, "-c", "ENV A=b c", root, ref)
	require.Contains(t, must(one, "history", ref), "hello")
	require.Contains(t, must(one, "inspect", ref), `"A=b c"`)
	require.Contains(t, must(one, "push", ref), "pushed "+ref+" sha256:")
	require.Contains(t, must(two, "pull", ref), shortID(id[:len(id)-1]))
	code, _, stderr := call(t, nil, "--data-dir", two, "pull", ref)
	require.Zero(t, code)
	require.Contains(t, stderr, "is there already")

	archive := filepath.Join(t.TempDir(), "a.tar")
	must(two, "tag", ref, "other:2")
	must(two, "save", "-o", archive, "other:2", ref)
	require.Contains(t, must(two, "rmi", "-f", id[:19]), "deleted "+id)
	require.NotContains(t, must(two, "images"), "other")
	require.Contains(t, must(two, "prune"), "freed")
	require.Contains(t, must(two, "load", "-t", "third", archive), "loaded")
	in, err := os.Open(archive)
	require.NoError(t, err)
	defer in.Close()
	code, stdout, stderr := call(t, func(c *cli) { c.in = in }, "--data-dir", t.TempDir(), "load", "-")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "loaded")
	require.Contains(t, must(two, "images", "-f", "dangling=false", "other"), "other:2")
	require.NotContains(t, must(two, "images", "other"), "third")
	require.Contains(t, must(two, "rmi", "other:2"), "untagged docker.io/library/other:2")
}

func TestChangesAreThoseOfADockerfile(t *testing.T) {
	change, err := parseChanges([]string{
		"CMD echo $A", `entrypoint ["/bin/x", "y"]`, "ENV A=1", `ENV A="2 3"`, "ENV B=", "LABEL k=v", "EXPOSE 80 53/udp", "VOLUME /v",
		"USER 1:1", "WORKDIR /w", "STOPSIGNAL TERM",
	})
	require.NoError(t, err)
	var c ocispec.ImageConfig
	change(&c)
	require.Equal(t, ocispec.ImageConfig{
		Cmd: []string{"/bin/sh", "-c", "echo $A"}, Entrypoint: []string{"/bin/x", "y"}, Env: []string{"A=2 3", "B="},
		Labels: map[string]string{"k": "v"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/v": {}},
		User: "1:1", WorkingDir: "/w", StopSignal: "TERM",
	}, c)
	change, err = parseChanges(nil)
	require.NoError(t, err)
	require.Nil(t, change)
}

func TestProgressOfLayers(t *testing.T) {
	for name, width := range map[string]func() int{"terminal": func() int { return 80 }, "lines": nil} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			d := &display{w: &b, now: time.Now, width: width}
			for _, p := range []arcbox.LayerProgress{
				{Layer: "sha256:aaaa", State: arcbox.LayerWaiting, Total: 100}, {Layer: "sha256:bbbb", State: arcbox.LayerWaiting, Total: 200},
				{Layer: "sha256:aaaa", State: arcbox.LayerRunning, Done: 50, Total: 100}, {Layer: "sha256:bbbb", State: arcbox.LayerExists, Done: 200, Total: 200},
				{Layer: "sha256:aaaa", State: arcbox.LayerDone, Done: 100, Total: 100}, {Layer: "sha256:cccc", State: arcbox.LayerMounted, Done: 1, Total: 1},
			} {
				d.pull(p)
			}
			d.close(false)
			require.Contains(t, b.String(), "is there already\n")
			require.Contains(t, b.String(), "done, 100 B")
			require.Contains(t, b.String(), "in another repository")
		})
	}
}
