package arcbox

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm"
)

func TestChoiceOfHypervisor(t *testing.T) {
	none := errors.New("no framework")
	for _, c := range []struct {
		name, os, arch string
		noVZ           error
		config         VMConfig
		want           Hypervisor
	}{
		{"Linux", "linux", "amd64", none, VMConfig{}, HypervisorQEMU},
		{"Mac", "darwin", "arm64", nil, VMConfig{}, HypervisorVZ},
		{"Mac, its own architecture", "darwin", "arm64", nil, VMConfig{Arch: "arm64"}, HypervisorVZ},
		{"Mac, hvf", "darwin", "arm64", nil, VMConfig{Accelerator: vm.AcceleratorHVF}, HypervisorVZ},
		{"Mac, vsock", "darwin", "amd64", nil, VMConfig{Transport: vm.TransportVsock}, HypervisorVZ},
		{"Mac without cgo", "darwin", "arm64", none, VMConfig{}, HypervisorQEMU},
		{"Mac, another architecture", "darwin", "arm64", nil, VMConfig{Arch: "amd64"}, HypervisorQEMU},
		{"Mac, emulated", "darwin", "arm64", nil, VMConfig{Accelerator: vm.AcceleratorTCG}, HypervisorQEMU},
		{"Mac, serial", "darwin", "arm64", nil, VMConfig{Transport: vm.TransportSerial}, HypervisorQEMU},
		{"Mac, a QEMU is named", "darwin", "arm64", nil, VMConfig{QEMU: "/q"}, HypervisorQEMU},
		{"QEMU is asked for", "darwin", "arm64", nil, VMConfig{Hypervisor: HypervisorQEMU}, HypervisorQEMU},
		{"vz is asked for", "linux", "amd64", none, VMConfig{Hypervisor: HypervisorVZ}, HypervisorVZ},
	} {
		require.Equal(t, c.want, c.config.choose(c.os, c.arch, c.noVZ), c.name)
	}
	_, err := New(Config{DataDir: t.TempDir(), VM: VMConfig{Hypervisor: "xen"}})
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "Config.VM.Hypervisor")
}
