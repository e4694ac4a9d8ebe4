// Package bootfs is what the host that composes an initramfs and the agent that starts from it must agree on: the paths in
// the initramfs and the list of kernel modules. It imports the standard library and the sentinels only, so both sides may
// use it.
//
// The module list is a text file of one module per line:
//
//	early /lib/modules/6.1.0-56-cloud-amd64/kernel/drivers/virtio/virtio.ko
//	late /lib/modules/6.1.0-56-cloud-amd64/kernel/fs/overlayfs/overlay.ko
//	demand /lib/modules/6.1.0-56-cloud-amd64/kernel/drivers/block/loop.ko
//
// The first word is the stage, the rest of the line the path of an uncompressed module. Lines are in the order in which
// the modules load: all that a module needs stand before it, in its own stage or an earlier one. So whoever loads them
// calls finit_module from top to bottom and resolves nothing. Empty lines and lines that begin with '#' mean nothing.
//
// A modules.dep in depmod's format stands beside the modules and names the dependencies of each, for those who load
// modules of the stage demand one by one.
package bootfs

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The paths in the initramfs.
const (
	Init       = "/init"               // the agent
	ModuleList = "/etc/arcbox/modules" // the list of modules; absent where the kernel has everything built in
	ModulesDir = "/lib/modules"        // below it a directory named after the kernel's release
)

// Parameters on the kernel's command line that the agent reads.
const (
	// LayersParameter tells where disks are files that the agent mounts by loop devices: "arcbox.layers=TYPE:SOURCE" is a
	// file system that the agent mounts read-only. Each file in it is a disk whose serial number is the file's name.
	LayersParameter = "arcbox.layers="
	// HostParameter tells where the directory is that the host shares whole: "arcbox.host=TYPE:SOURCE" is a file system that
	// the agent mounts. Containers mount what is below it: see api.HostShare.
	HostParameter = "arcbox.host="
	// RosettaParameter tells where the program rosetta is that runs programs for amd64: "arcbox.rosetta=TYPE:SOURCE" is a
	// file system with it that the agent mounts.
	RosettaParameter = "arcbox.rosetta="
)

// KernelParameters returns what belongs on the kernel's command line on every hypervisor. Of the security modules there are
// those that a program can use without a policy, which no machine has: "selinux=0" alone is not known to every kernel. What the kernel does not know is
// the agent's environment: signals that make goroutines take turns are for tight loops, which it has none of, and are
// costly where the processor is emulated.
func KernelParameters() []string {
	return []string{"quiet", "random.trust_cpu=on", "audit=0", "lsm=landlock,yama", "cryptomgr.notests", "GODEBUG=asyncpreemptoff=1"}
}

// MaxList is the largest size of a module list in bytes that Parse accepts.
const MaxList = 1 << 20

// Stage says when a module is loaded.
type Stage string

// The stages, in their order.
const (
	Early  Stage = "early"  // before the agent answers: the transport it answers on
	Late   Stage = "late"   // at once after that, while the host does something else: what a container needs
	Demand Stage = "demand" // when something asks for it
)

// rank returns the position of a stage in the order of loading, or 0 for an unknown one.
func (s Stage) rank() int {
	switch s {
	case Early:
		return 1
	case Late:
		return 2
	case Demand:
		return 3
	}
	return 0
}

// Module is one line of the list.
type Module struct {
	Stage Stage
	Path  string // absolute, in the initramfs
}

// Format returns the text of a list. It returns ErrInvalid for a module that Parse would not take back.
func Format(mods []Module) ([]byte, error) {
	var b bytes.Buffer
	for _, m := range mods {
		if err := m.check(); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s %s\n", m.Stage, m.Path)
	}
	if b.Len() > MaxList {
		return nil, fmt.Errorf("format module list: %w: %d bytes are more than %d", errs.ErrInvalid, b.Len(), MaxList)
	}
	return b.Bytes(), nil
}

// Parse reads the text of a list. An empty text is an empty list. It returns ErrInvalid, with the number of the line,
// for text that is not a list.
func Parse(text []byte) ([]Module, error) {
	if len(text) > MaxList {
		return nil, fmt.Errorf("parse module list: %w: %d bytes are more than %d", errs.ErrInvalid, len(text), MaxList)
	}
	var mods []Module
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		stage, p, _ := strings.Cut(line, " ")
		m := Module{Stage(stage), p}
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("parse module list: line %d: %w", i+1, err)
		}
		mods = append(mods, m)
	}
	return mods, nil
}

// Pick returns the modules of one stage in their order.
func Pick(mods []Module, stage Stage) []Module {
	var out []Module
	for _, m := range mods {
		if m.Stage == stage {
			out = append(out, m)
		}
	}
	return out
}

func (m Module) check() error {
	if m.Stage.rank() == 0 {
		return fmt.Errorf("%w stage %q", errs.ErrInvalid, m.Stage)
	}
	clean := path.IsAbs(m.Path) && path.Clean(m.Path) == m.Path
	if !clean || strings.ContainsAny(m.Path, "\n\r\x00") || !strings.HasPrefix(m.Path, ModulesDir+"/") {
		return fmt.Errorf("%w path %q: not a clean path below %s", errs.ErrInvalid, m.Path, ModulesDir)
	}
	return nil
}
