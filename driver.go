package arcbox

import (
	"fmt"
	"runtime"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
	"github.com/arcboxlabs/arcbox-go/vm/vz"
)

// Hypervisor names what runs virtual machines.
type Hypervisor string

// The hypervisors.
const (
	HypervisorAuto Hypervisor = ""     // the best for this host and Config
	HypervisorQEMU Hypervisor = "qemu" // on Linux; on macOS nobody has tried it yet
	HypervisorVZ   Hypervisor = "vz"   // Apple's Virtualization framework, on macOS 13 or later, in programs built with cgo
)

// EntitlementError says that macOS does not let the program start machines, because it is not signed for it, and how to
// sign it. It wraps ErrUnavailable.
type EntitlementError = vz.EntitlementError

func (h Hypervisor) check() error {
	switch h {
	case HypervisorAuto, HypervisorQEMU, HypervisorVZ:
		return nil
	}
	return fmt.Errorf("%w Config.VM.Hypervisor %q: use qemu or vz, or leave it empty", errs.ErrInvalid, h)
}

// choose returns the hypervisor for a config on a host of the system and architecture. noVZ is why the Virtualization
// framework cannot be used there, nil where it can. It is pure.
func (c VMConfig) choose(goos, goarch string, noVZ error) Hypervisor {
	switch {
	case c.Hypervisor != HypervisorAuto:
		return c.Hypervisor
	case goos != "darwin" || noVZ != nil || c.QEMU != "":
		return HypervisorQEMU
	case c.Arch != "" && c.Arch != goarch: // emulated
		return HypervisorQEMU
	case c.Accelerator != vm.AcceleratorAuto && c.Accelerator != vm.AcceleratorHVF:
		return HypervisorQEMU
	case c.Transport != vm.TransportAuto && c.Transport != vm.TransportVsock:
		return HypervisorQEMU
	}
	return HypervisorVZ
}

// hypervisor returns the hypervisor of this host for the config.
func (c Config) hypervisor() Hypervisor {
	return c.VM.choose(runtime.GOOS, runtime.GOARCH, vz.New(vz.Config{}).Probe())
}

// driver returns the driver of the hypervisor. It looks at nothing that the driver needs.
func (c Config) driver() vm.Driver {
	if c.hypervisor() == HypervisorVZ {
		return vz.New(vz.Config{Logger: c.Logger})
	}
	return qemu.New(qemu.Config{Binary: c.VM.QEMU, Logger: c.Logger})
}
