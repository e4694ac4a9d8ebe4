package arcbox_test

import (
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

func labelled(name, label string) arcbox.ImageSpec {
	return arcbox.ImageSpec{
		Names: []string{name}, Base: "busybox:test", Config: ocispec.ImageConfig{Labels: map[string]string{label: "1"}},
		Layers: []arcbox.ImageLayer{{Files: map[string]arcbox.ImageFile{"/f": {Data: []byte(name)}}}},
	}
}

// TestPruneImagesLeavesThoseOfContainers prunes in a runtime and in another one on its data directory.
func TestPruneImagesLeavesThoseOfContainers(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	_, err := rt.BuildImage(ctx, labelled("pruned:1", "prune-test"), arcbox.BuildOptions{})
	require.NoError(t, err)
	c, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "pruned:1", Name: "needs-it"}, arcbox.CreateOptions{})
	require.NoError(t, err)
	before, err := rt.DiskUsage(ctx)
	require.NoError(t, err)
	require.Positive(t, before.Machines.Bytes)
	require.Positive(t, before.Boot.Bytes)
	require.GreaterOrEqual(t, before.Containers.Count, 1)
	require.Positive(t, before.Machines.Active)

	cfg := testConfig(t)
	cfg.DataDir = shared.dir
	other, err := arcbox.New(cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	opts := arcbox.PruneImagesOptions{All: true, Labels: []string{"prune-test=1"}}
	for _, r := range []*arcbox.Runtime{rt, other} {
		p, err := r.PruneImages(ctx, opts)
		require.NoError(t, err)
		require.Empty(t, p.Images)
	}
	require.NoError(t, rt.RemoveContainer(ctx, c.ID, arcbox.RemoveOptions{}))
	p, err := other.PruneImages(ctx, opts)
	require.NoError(t, err)
	require.Len(t, p.Images, 1)
	require.Positive(t, p.Bytes)
	_, err = rt.InspectImage(ctx, "pruned:1")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
}

// TestDiskUsageAddsUp needs no machine.
func TestDiskUsageAddsUp(t *testing.T) {
	cfg := testConfig(t)
	cfg.Boot.Dir = filepath.Join(cfg.DataDir, "boot")
	rt := newRuntime(t, cfg)
	ctx := testContext(t)
	loadBusybox(t, rt)
	left := filepath.Join(cfg.DataDir, "machines", ".removed-1")
	require.NoError(t, os.Mkdir(left, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(left, "disk.img"), make([]byte, 8192), 0o600))
	d, err := rt.DiskUsage(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, d.Images.Count)
	require.Equal(t, d.Blobs.Bytes+d.LayerImages.Bytes, d.Images.Bytes)
	require.Equal(t, d.Images.Bytes, d.Images.Reclaimable)
	require.GreaterOrEqual(t, d.Machines.Reclaimable, int64(8192))
	require.Equal(t, d.Images.Bytes+d.Machines.Bytes, d.Total(), "there is nothing else")
	p, err := rt.PruneImages(ctx, arcbox.PruneImagesOptions{Keep: true, LayerImages: true})
	require.NoError(t, err)
	require.Equal(t, d.LayerImages.Bytes, p.Bytes)
	p, err = rt.PruneImages(ctx, arcbox.PruneImagesOptions{All: true})
	require.NoError(t, err)
	require.Equal(t, d.Blobs.Bytes, p.Bytes)
	_, err = rt.PruneImages(ctx, arcbox.PruneImagesOptions{Keep: true, All: true})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
}
