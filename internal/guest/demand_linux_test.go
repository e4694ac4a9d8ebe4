package guest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
)

func TestWhatModulesNeed(t *testing.T) {
	d, err := newDemand([]bootfs.Module{
		{Stage: bootfs.Late, Path: "/lib/modules/6/a/overlay.ko"}, {Stage: bootfs.Demand, Path: "/lib/modules/6/fs/vir-tio.fs.ko"},
	})
	require.NoError(t, err)
	d.parse("/lib/modules/6", []byte("fs/virtiofs.ko: fs/fuse.ko virtio/virtio.ko\nfs/fuse.ko:\nnonsense\n\n"))
	require.Equal(t, []string{"/lib/modules/6/virtio/virtio.ko", "/lib/modules/6/fs/fuse.ko"}, d.needs["/lib/modules/6/fs/virtiofs.ko"])
	require.Empty(t, d.needs["/lib/modules/6/fs/fuse.ko"])
	require.Equal(t, map[string]string{"vir_tio": "/lib/modules/6/fs/vir-tio.fs.ko"}, d.paths)
	require.NoError(t, d.load("built_in"))
	d.needs["/lib/modules/6/fs/vir-tio.fs.ko"] = []string{"/no/such/module.ko"}
	require.ErrorContains(t, d.load("vir_tio"), "/no/such/module.ko")
}

func TestParameter(t *testing.T) {
	const line = "quiet arcbox.layers=virtiofs:x  arcbox.layers=second console=hvc0\n"
	require.Equal(t, "virtiofs:x", parameter(line, bootfs.LayersParameter))
	require.Equal(t, "hvc0", parameter(line, "console="))
	require.Empty(t, parameter(line, bootfs.RosettaParameter))
}
