package guest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// TestLayersAreFiles runs containers whose layers are files of a file system that the guest mounts, as on a hypervisor
// that cannot add disks to a running machine. Here it is an ext4 on a disk; there it is a directory of the host. As there,
// the machine's console needs a module: when the kernel executes the agent, there is nothing that it could write to.
func TestLayersAreFiles(t *testing.T) {
	dir := t.TempDir()
	files, err := baseFiles(testContext(t), dir, "")
	needs.Machine(t, err)
	image, share := filepath.Join(dir, "image"), filepath.Join(dir, "share")
	require.NoError(t, writeLayer(image, files))
	body, err := os.ReadFile(image)
	require.NoError(t, err)
	require.NoError(t, writeLayer(share, []file{
		{name: "as-a-file", mode: 0o444, body: string(body)}, {name: "no-layer", mode: 0o444, body: strings.Repeat("x", 64<<10)}, {name: "dir/", mode: 0o755},
	}))
	m := ownMachine(t, vm.Spec{
		Name: noLayers, CPUs: 2, Disks: []vm.Disk{{ID: "share", Path: share, ReadOnly: true}},
		Cmdline: bootfs.LayersParameter + "ext4:/dev/sda " + bootfs.HostParameter + "tmpfs:host 8250.nr_uarts=0 console=hvc0",
	})
	require.NoError(t, m.Settle(testContext(t), false)) // the share is the only disk, so it is sda
	users := filepath.Join(dir, "users")
	require.NoError(t, writeLayer(users, userFiles()))
	for id, path := range map[string]string{"users": users, "base": image} {
		require.NoError(t, m.inst.(vm.DiskAttacher).AttachDisk(testContext(t), vm.Disk{ID: id, Path: path, ReadOnly: true}))
	}
	for range 2 { // the second one finds it mounted
		require.Equal(t, "from a file\n", m.sh(t, "echo from a file", layers("as-a-file")))
	}
	require.Equal(t, "both\n", m.sh(t, "grep -q app /etc/passwd && echo both", layers("as-a-file", "users")))
	require.Equal(t, "ro\n", m.sh(t, "echo x > /bin/new; cut -d, -f1 /sys/block/loop0/ro >/dev/null && echo ro", layers("as-a-file")))
	for name, want := range map[string]error{"no-layer": errs.ErrCorrupt, "dir": errs.ErrInvalid} {
		err := m.Create(testContext(t), api.CreateRequest{
			ID: name, Layers: []api.Layer{{Serial: name}}, Process: api.Process{Args: []string{"true"}},
		})
		require.ErrorIs(t, err, want)
	}
	require.Equal(t, "disk\n", m.sh(t, "echo disk", layers("base")), "disks are found too")

	// The directory that the host shares whole is a tmpfs here, and a directory of the host there.
	host := func(path string, readOnly bool) spec {
		return func(r *api.CreateRequest) {
			r.Mounts = []api.Mount{{Kind: api.MountShare, Source: api.HostShare + path, Target: "/mnt", ReadOnly: readOnly}}
		}
	}
	require.Empty(t, m.sh(t, "mkdir /mnt/sub && echo in it > /mnt/sub/file && ln -s / /mnt/root", host(".", false)))
	require.Equal(t, "in it\n", m.sh(t, "cat /mnt/file", host("sub", false)))
	require.Equal(t, "in it\n", m.sh(t, "cat /mnt", host("sub/file", false)))
	require.Equal(t, "ro\n", m.sh(t, "touch /mnt/new 2>/dev/null || echo ro", host("sub", true)))
	require.Equal(t, "root\nsub\n", m.sh(t, "ls /mnt", host("root", false)), "a link does not lead out of it")
	for path, want := range map[string]error{"none": errs.ErrNotFound, "../f": errs.ErrInvalid, "/run": errs.ErrInvalid, "": errs.ErrInvalid} {
		req := request(t, []string{"true"}, host(path, false))
		require.ErrorIs(t, m.Create(testContext(t), req), want, path)
	}

	rep, err := m.VsockCheck(testContext(t))
	require.NoError(t, err)
	require.Equal(t, api.Version, rep.Ping.Version)
}
