package vz

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// version is one of macOS.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// parseVersion reads a version as the system tells it, for example "14.6.1".
func parseVersion(s string) (version, error) {
	major, rest, _ := strings.Cut(strings.TrimSpace(s), ".")
	minor, _, _ := strings.Cut(rest, ".")
	var v version
	var err error
	if v.major, err = strconv.Atoi(major); err == nil && minor != "" {
		v.minor, err = strconv.Atoi(minor)
	}
	if err != nil || v.major < 0 || v.minor < 0 {
		return version{}, fmt.Errorf("version of macOS %.40q: %w", s, errs.ErrInvalid)
	}
	return v, nil
}

// The versions of macOS on which something is there.
var (
	minVersion  = version{13, 0} // serial numbers of disks are since 12.3, Rosetta and machine identifiers since 13
	saveVersion = version{14, 0} // on arm64
)

// host is what a plan depends on.
type host struct {
	os                   version
	arch                 string // as GOARCH
	minCPUs, maxCPUs     int
	minMemory, maxMemory int64 // bytes
	rosetta              bool  // Rosetta for Linux is installed
}

func (h host) check() error {
	if h.os.less(minVersion) {
		return fmt.Errorf("virtualization on macOS %s: %w: macOS %s or later is needed", h.os, errs.ErrUnsupported, minVersion)
	}
	return nil
}

// saves tells whether the framework can save machines at all.
func (h host) saves() bool { return h.arch == "arm64" && !h.os.less(saveVersion) }

func (h host) capabilities() vm.Capabilities {
	return vm.Capabilities{
		Pause: true, AttachReadOnly: true, Snapshot: h.saves(), NIC: true, Shares: true, Rosetta: h.rosetta, Console: true,
	}
}

// The tags of the directories that are shared with a guest.
const (
	layersTag  = "arcbox.layers"
	rosettaTag = "arcbox.rosetta"
)

// plan is everything that the framework is told about a machine.
type plan struct {
	name      string
	arch      string
	os        version // of the host: a state of one is not good for another
	kernel    string  // files have absolute paths, "" is none
	initramfs string
	cmdline   string
	cpus      int
	memory    int64 // bytes
	disks     []vm.Disk
	shares    []vm.Share
	rosetta   bool
	nic       bool
	layers    string // directory that is shared under layersTag, read-only; set at the start

	dir      string // for what the driver keeps while the machine runs; "" is one of the system's
	identity string // file with the machine's identity, for one that is saved or goes on; "" is a fresh identity
	state    string // file from which the machine goes on; "" boots
}

// newPlan makes the plan for a completed Spec. It looks at no files.
func newPlan(h host, spec vm.Spec) (p plan, err error) {
	if err := h.check(); err != nil {
		return plan{}, err
	}
	if err := h.can(spec); err != nil {
		return plan{}, err
	}
	p = plan{
		name: spec.Name, arch: spec.Arch, os: h.os, cpus: spec.CPUs, memory: spec.Memory, rosetta: spec.Rosetta, nic: spec.NIC,
		cmdline: cmdline(spec),
	}
	for _, f := range []struct {
		to   *string
		from string
	}{
		{&p.kernel, spec.Kernel},
		{&p.initramfs, spec.Initramfs},
		{&p.dir, spec.Dir},
		{&p.identity, spec.MemoryFile},
		{&p.state, spec.State},
	} {
		if *f.to, err = absolute(f.from); err != nil {
			return plan{}, err
		}
	}
	for _, d := range spec.Disks {
		if d.Path, err = absolute(d.Path); err != nil {
			return plan{}, err
		}
		p.disks = append(p.disks, d)
	}
	for _, s := range spec.Shares {
		if s.Path, err = absolute(s.Path); err != nil {
			return plan{}, err
		}
		p.shares = append(p.shares, s)
	}
	if p.identity != "" {
		if err := p.saveable(); err != nil {
			return plan{}, err
		}
		if !h.saves() {
			return plan{}, fmt.Errorf("save a machine on macOS %s, %s: %w: macOS %s on Apple silicon can", h.os, h.arch, errs.ErrUnsupported, saveVersion)
		}
	}
	return p, nil
}

// can tells why the host cannot start a machine of the Spec, nil where it can.
func (h host) can(spec vm.Spec) error {
	switch {
	case spec.Arch != h.arch:
		return fmt.Errorf("a guest for %s on a host for %s: %w: the driver qemu emulates it", spec.Arch, h.arch, errs.ErrUnsupported)
	case spec.Accelerator != vm.AcceleratorAuto && spec.Accelerator != vm.AcceleratorHVF:
		return fmt.Errorf("accelerator %.40q: %w by the driver vz: leave it empty", spec.Accelerator, errs.ErrUnsupported)
	case spec.Transport != vm.TransportAuto && spec.Transport != vm.TransportVsock:
		return fmt.Errorf("transport %.40q: %w by the driver vz: leave it empty", spec.Transport, errs.ErrUnsupported)
	case spec.CPUs < h.minCPUs || spec.CPUs > h.maxCPUs:
		return fmt.Errorf("%d CPUs: %w: this Mac's machines have %d to %d", spec.CPUs, errs.ErrUnsupported, h.minCPUs, h.maxCPUs)
	case spec.Memory < h.minMemory || spec.Memory > h.maxMemory:
		return fmt.Errorf("%d MiB of memory: %w: this Mac's machines have %d to %d MiB", spec.Memory>>20, errs.ErrUnsupported, h.minMemory>>20, h.maxMemory>>20)
	case spec.Forkable:
		return fmt.Errorf("a machine that can be forked: %w: the framework keeps a machine's memory to itself", errs.ErrUnsupported)
	case spec.ReturnMemory:
		return fmt.Errorf("a machine that gives memory back: %w: the framework gives the host little or nothing of what a balloon holds", errs.ErrUnsupported)
	case len(spec.Bays) > 0:
		return fmt.Errorf("bays: %w: the framework does not change what is in a disk", errs.ErrUnsupported)
	case spec.Rosetta && !h.rosetta:
		return fmt.Errorf("programs for amd64 by Rosetta: %w: install it with: softwareupdate --install-rosetta", errs.ErrUnsupported)
	}
	for _, d := range spec.Disks {
		if d.Backing != "" {
			return fmt.Errorf("disk %s over another image: %w: the framework takes raw images only", d.ID, errs.ErrUnsupported)
		}
	}
	for _, s := range spec.Shares {
		if s.Tag == layersTag || s.Tag == rosettaTag {
			return fmt.Errorf("share %q: %w: the driver has one with this tag itself", s.Tag, errs.ErrInvalid)
		}
	}
	return nil
}

// cmdline is the kernel's command line. The framework does not tell that a guest's kernel has panicked, and starts one
// anew that resets itself. So the kernel stays where it is (panic=0), and the driver ends the machine when it reads of the
// panic on the console.
func cmdline(spec vm.Spec) string {
	words := append(bootfs.KernelParameters(), "console=hvc0", "panic=0", bootfs.LayersParameter+"virtiofs:"+layersTag)
	if spec.Rosetta {
		words = append(words, bootfs.RosettaParameter+"virtiofs:"+rosettaTag)
	}
	if spec.Cmdline != "" {
		words = append(words, spec.Cmdline)
	}
	return strings.Join(words, " ")
}

// saveable tells why a machine of the plan cannot be saved, nil where it can. Disks and shares are not part of a saved
// state, and those who go on from it would have others.
func (p plan) saveable() error {
	if len(p.disks) > 0 || len(p.shares) > 0 {
		return fmt.Errorf("save a machine with disks or shares: %w by the driver vz", errs.ErrUnsupported)
	}
	return nil
}

// shape is equal for plans of which one can go on from the state of another.
func (p plan) shape() string {
	return fmt.Sprintf("vz 1\x00%s\x00%s\x00%d\x00%d\x00%t\x00%t\x00%s", p.os, p.arch, p.cpus, p.memory, p.rosetta, p.nic, p.cmdline)
}
