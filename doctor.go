package arcbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
	"github.com/arcboxlabs/arcbox-go/vm/vz"
)

// FindingKind says what Doctor found.
type FindingKind string

// The findings.
const (
	FindingQEMUMissing   FindingKind = "qemu-missing"       // the QEMU binary for the guest's architecture
	FindingQEMUTooOld    FindingKind = "qemu-too-old"       // or it does not tell its version
	FindingNoHardwareVM  FindingKind = "no-hardware-vm"     // guests are emulated: slower, and complete
	FindingAccelerator   FindingKind = "accelerator"        // the one that Config asks for cannot work here
	FindingNoKernel      FindingKind = "no-kernel"          // none in Config, in the cache, from apt or the built-in list
	FindingNoAgent       FindingKind = "no-agent"           // no binary in Config and no Go toolchain to build it
	FindingNoSpace       FindingKind = "no-space"           // less than MinFreeSpace where the data directory is
	FindingDataDir       FindingKind = "data-dir"           // it cannot be written
	FindingNoEntitlement FindingKind = "no-entitlement"     // macOS: the program is not signed for virtualization
	FindingNoVsock       FindingKind = "no-vsock"           // Config asks for the transport and it cannot work here
	FindingUnsupportedOS FindingKind = "unsupported-system" // no driver works on this system
)

// MinFreeSpace is how much free space Doctor wants for the data directory, in bytes: a kernel, its modules and a few
// images.
const MinFreeSpace = 2 << 30

// Finding is something about the host that keeps arcbox from working, or from working well.
type Finding struct {
	Kind    FindingKind
	Fatal   bool   // no container can run as long as it stays so
	Message string // what was found
	Fix     string // what to do, in words; "" where nothing can be done
}

// Doctor looks at the host and returns what would keep a Runtime with that config from working, or from working well,
// the gravest first; nothing where all is well. It boots nothing, uses no network, and writes nothing but a trial file in
// the data directory, which it makes where it does not exist.
//
// The error is that of a config which cannot be used at all, or that of ctx.
func Doctor(ctx context.Context, cfg Config) ([]Finding, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, opError("Doctor", "", err)
	}
	var fatal, notes []Finding
	for _, check := range []func(context.Context, Config) []Finding{checkDataDir, checkHypervisor, checkBoot, checkSystem} {
		for _, f := range check(ctx, cfg) {
			if f.Fatal {
				fatal = append(fatal, f)
			} else {
				notes = append(notes, f)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, opError("Doctor", "", err)
	}
	return append(fatal, notes...), nil
}

func checkDataDir(_ context.Context, cfg Config) []Finding {
	if err := prepareDataDir(cfg.DataDir); err != nil {
		return []Finding{{
			Kind: FindingDataDir, Fatal: true, Message: err.Error(),
			Fix: "set Config.DataDir to a directory that this user can write",
		}}
	}
	free, err := freeSpace(cfg.DataDir)
	if err != nil || free >= MinFreeSpace {
		return nil
	}
	return []Finding{{
		Kind: FindingNoSpace, Message: fmt.Sprintf("%s has %d MiB free", cfg.DataDir, free>>20),
		Fix: fmt.Sprintf("free up to %d MiB there, or set Config.DataDir to a larger file system", MinFreeSpace>>20),
	}}
}

func checkHypervisor(ctx context.Context, cfg Config) []Finding {
	if cfg.hypervisor() != HypervisorVZ {
		return checkQEMU(ctx, cfg)
	}
	if err := vz.New(vz.Config{}).Probe(); err != nil {
		return []Finding{{
			Kind: FindingUnsupportedOS, Fatal: true, Message: err.Error(),
			Fix: "leave Config.VM.Hypervisor empty; on a Mac build the program with cgo, on macOS 13 or later",
		}}
	}
	return nil
}

func checkQEMU(ctx context.Context, cfg Config) []Finding {
	d := qemu.New(qemu.Config{Binary: cfg.VM.QEMU, Logger: cfg.Logger})
	facts, err := d.Probe(ctx, cfg.VM.Arch, cfg.VM.Accelerator)
	var out []Finding
	if f, ok := qemuFinding(facts, err); ok {
		out = append(out, f)
	}
	if cfg.VM.Transport == vm.TransportVsock && facts.Vsock != nil {
		out = append(out, Finding{
			Kind: FindingNoVsock, Fatal: true, Message: facts.Vsock.Error(),
			Fix: "load the module vhost_vsock and allow this user to open /dev/vhost-vsock, or leave Config.VM.Transport empty",
		})
	}
	return out
}

// qemuFinding turns the result of a probe into a finding. It is pure.
func qemuFinding(facts qemu.Facts, err error) (Finding, bool) {
	switch {
	case err != nil && facts.Binary == "" && errors.Is(err, errs.ErrUnsupported):
		return Finding{Kind: FindingUnsupportedOS, Fatal: true, Message: err.Error()}, true
	case err != nil && facts.Binary == "":
		return Finding{
			Kind: FindingQEMUMissing, Fatal: true, Message: err.Error(),
			Fix: "install QEMU: apt-get install qemu-system-x86 (or qemu-system-arm), or brew install qemu; or name its binary in Config.VM.QEMU",
		}, true
	case err != nil && facts.Accelerator == "" && facts.Version.Less(qemu.MinVersion):
		return Finding{
			Kind: FindingQEMUTooOld, Fatal: true, Message: err.Error(),
			Fix: fmt.Sprintf("install QEMU %s or later, or name one in Config.VM.QEMU", qemu.MinVersion),
		}, true
	case err != nil:
		return Finding{
			Kind: FindingAccelerator, Fatal: true, Message: err.Error(),
			Fix: "leave Config.VM.Accelerator empty: the best one that works is chosen",
		}, true
	case facts.Accelerator == vm.AcceleratorTCG:
		return Finding{
			Kind: FindingNoHardwareVM, Message: "guests are emulated in software: " + facts.Reason,
			Fix: "where the host can, allow hardware virtualisation; everything works without it, more slowly",
		}, true
	}
	return Finding{}, false
}

func checkBoot(ctx context.Context, cfg Config) []Finding {
	kernel, agent := boot.Check(ctx, cfg.bootConfig())
	var out []Finding
	if kernel != nil {
		out = append(out, Finding{
			Kind: FindingNoKernel, Fatal: true, Message: kernel.Error(),
			Fix: "name a kernel and its modules in Config.Boot.Kernel and Modules, a package in URL and SHA256, or an OCI artifact in Image",
		})
	}
	if agent != nil {
		out = append(out, Finding{
			Kind: FindingNoAgent, Fatal: true, Message: agent.Error(),
			Fix: "install the Go toolchain, or name the agent's binary in Config.Boot.Agent",
		})
	}
	return out
}
