package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// TestDiskUsageAndPrune needs no machine.
func TestDiskUsageAndPrune(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	layer := imagetest.Files(t, map[string]imagetest.File{"f": {Data: []byte(strings.Repeat("x", 100_000))}})
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, imagetest.Image{Names: []string{"app:1"}, Layers: []imagetest.Layer{layer}}), 0o600))
	do := func(want string, args ...string) string {
		code, stdout, stderr := call(t, nil, append([]string{"--data-dir", filepath.Join(dir, "data")}, args...)...)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, want)
		return stdout
	}
	do("loaded docker.io/library/app:1", "load", file)
	out := do("layer images", "df")
	require.Regexp(t, `images +1 +0 +[1-9]`, out)
	require.Regexp(t, `total +[1-9]`, out)
	do("freed 0", "prune", "--all", "--unused", "1h")
	do("freed", "prune", "--keep", "--layer-images")
	do("removed docker.io/library/app:1", "prune", "--all", "--budget", "1k")
	require.Regexp(t, `images +0 +0 +0`, do("images", "df"))
}

func TestPruneFlags(t *testing.T) {
	o, err := (&pruneFlags{budget: "2g", unused: time.Hour, opts: arcbox.PruneImagesOptions{All: true}}).options()
	require.NoError(t, err)
	require.Equal(t, arcbox.PruneImagesOptions{All: true, Unused: time.Hour, Budget: 2 << 30}, o)
	for _, args := range [][]string{{"prune", "--budget", "much"}, {"prune", "--budget", "-1"}, {"prune", "--unused", "x"}, {"prune", "image"}} {
		code, _, stderr := call(t, nil, append([]string{"--data-dir", t.TempDir()}, args...)...)
		require.NotZero(t, code)
		require.NotEmpty(t, stderr)
	}
}
