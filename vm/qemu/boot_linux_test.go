package qemu

import (
	"io"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// TestBootOfAnotherArchitecture runs a guest of the architecture that this host does not have, with everything in it.
func TestBootOfAnotherArchitecture(t *testing.T) {
	arch := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	f, err := New(Config{}).Probe(testContext(t), arch, "")
	needs.Machine(t, err)
	require.Equal(t, vm.AcceleratorTCG, f.Accelerator)
	a, err := makeAssets(arch)
	needs.Machine(t, err)
	i := startT(t, vm.Spec{
		Arch: arch, Kernel: a.Kernel, Initramfs: a.Initramfs, CPUs: 2,
		Disks: []vm.Disk{{ID: "disk", Path: a.Initramfs, ReadOnly: true}},
	})
	for line, want := range map[string]string{"wait disk": "yes\n", "say hello": "ok\n", "has none": "no\n"} {
		c, err := i.Dial(testContext(t), guest.PortCommand)
		require.NoError(t, err)
		_, err = io.WriteString(c, line+"\n")
		require.NoError(t, err)
		require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, want, string(b))
		c.Close()
	}
}
