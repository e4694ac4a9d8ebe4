// Package qemu runs machines in QEMU.
//
// Each machine is one QEMU process, a child of the program that uses the package. It has no files: its control socket,
// its console and the link to the guest's agent are socket pairs that QEMU inherits, so there is no path to be too long,
// to be left behind or to be opened by somebody else. QEMU never outlives its owner, whatever ends that, and it runs
// inside its own seccomp sandbox, without default devices and without configuration files.
//
// Streams to the guest go through a virtio-serial port with the name "arcbox.agent" that carries package mux, or over
// AF_VSOCK where the host can and the caller asks.
//
// The driver works on Linux with QEMU 7.2 or later, by KVM where that is usable and by software emulation elsewhere. It
// also starts QEMU on macOS, by HVF or emulated, which nobody has tried yet on a Mac: of that the command lines are
// tested, and on Linux the way in which QEMU ends with its owner there.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Config configures a driver. The zero value works.
type Config struct {
	Binary string       // path or name of the QEMU program; "" is qemu-system-x86_64 or qemu-system-aarch64 from PATH
	Logger *slog.Logger // nil is silent
}

// Driver starts machines in QEMU. Its methods may be called from many goroutines.
type Driver struct {
	binary string
	log    *slog.Logger
	tsc    *tscRate
	spawn  spawner

	resumeLimit time.Duration // for a QEMU to go on from its image
}

// spawner starts a program that ends with this process at the latest.
type spawner func(path string, args []string, stderr io.Writer, files []*os.File) (*process, error)

var (
	_ vm.Driver = (*Driver)(nil)
	_ vm.Shaper = (*Driver)(nil)
	_ vm.Imager = (*Driver)(nil)
)

// New returns a driver. It looks at nothing: a missing QEMU shows in Start and in Probe.
func New(cfg Config) *Driver {
	d := &Driver{binary: cfg.Binary, log: cfg.Logger, tsc: newTSCRate(), spawn: startProcess, resumeLimit: resumeLimit}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name returns "qemu".
func (d *Driver) Name() string { return "qemu" }

// Capabilities tells what machines in QEMU can do. Snapshots need software emulation for now: see Shape.
func (d *Driver) Capabilities() vm.Capabilities {
	return vm.Capabilities{
		Console: true, Pause: true, AttachReadOnly: true, AttachWritable: true, Bays: true, Detach: true, ReturnMemory: true,
		Snapshot: true, Fork: true, SharedState: true, ForeignArch: true, NIC: true,
	}
}

// Facts are what a driver would start machines with.
type Facts struct {
	Binary      string         // path of the QEMU program
	Version     Version        // of it
	Accelerator vm.Accelerator // never AcceleratorAuto
	Reason      string         // why the accelerator is not a faster one; "" where it is the fastest
	Vsock       error          // nil where TransportVsock can be used, else why not
}

// Probe finds out what machines of an architecture, "" for the host's, would be started with. A QEMU that is missing or
// does not answer is ErrUnavailable, one that is too old ErrUnsupported, and so is an accelerator that was asked for and
// cannot work; the Facts then have what was found before that.
func (d *Driver) Probe(ctx context.Context, arch string, want vm.Accelerator) (Facts, error) {
	h := thisHost()
	if arch == "" {
		arch = h.arch
	}
	f := Facts{Vsock: probeVsock()}
	var err error
	if f.Binary, err = find(d.binary, h.os, arch); err != nil {
		return f, err
	}
	if f.Version, err = askVersion(ctx, f.Binary); err != nil {
		return f, err
	}
	if err := f.Version.check(); err != nil {
		return f, err
	}
	f.Accelerator, f.Reason, err = h.choose(arch, want)
	return f, err
}

// Start starts a machine. See vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start machine: %w", context.Cause(ctx))
	}
	h := thisHost()
	spec, err := spec.Complete(h.arch)
	if err != nil {
		return nil, err
	}
	if len(spec.Shares) > 0 || spec.Rosetta {
		return nil, fmt.Errorf("start machine %s: shares and Rosetta: %w by the driver qemu", spec.Name, errs.ErrUnsupported)
	}
	if err := resolveFiles(&spec); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.Name, err)
	}
	path, err := find(d.binary, h.os, spec.Arch)
	if err != nil {
		return nil, err
	}
	accel, reason, err := h.choose(spec.Arch, spec.Accelerator)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.Name, err)
	}
	log := d.log.With("machine", spec.Name)
	log.Info("starting QEMU", "binary", path, "accelerator", string(accel), "reason", reason)
	c := command{spec: spec, accel: accel, linux: h.os == "linux", tsc: d.tsc.kHz()}
	if inst, err := d.resume(ctx, log, c); inst != nil || err != nil {
		return inst, err
	}
	inst, err := d.start(ctx, log, path, c)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.Name, err)
	}
	return inst, nil
}

// resolveFiles makes the paths of a Spec absolute and checks that there are files.
func resolveFiles(spec *vm.Spec) error {
	var err error
	if spec.Kernel, err = resolve("kernel", spec.Kernel); err != nil {
		return err
	}
	if spec.Initramfs != "" {
		if spec.Initramfs, err = resolve("initramfs", spec.Initramfs); err != nil {
			return err
		}
	}
	if spec.State != "" {
		if spec.State, err = resolve("state", spec.State); err != nil {
			return err
		}
		if spec.MemoryFile, err = resolve("memory file", spec.MemoryFile); err != nil {
			return err
		}
	}
	if spec.MemoryFile != "" {
		if spec.MemoryFile, err = filepath.Abs(spec.MemoryFile); err != nil {
			return fmt.Errorf("memory file: %w", err)
		}
	}
	spec.Disks = append([]vm.Disk(nil), spec.Disks...)
	fillSlots(spec.Disks, len(spec.Bays))
	for i := range spec.Disks {
		d := &spec.Disks[i]
		if err = resolveDisk(d); err != nil {
			return err
		}
	}
	return checkBays(*spec)
}

func resolveDisk(d *vm.Disk) (err error) {
	if d.Path, err = resolve("disk "+d.ID, d.Path); err == nil && d.Backing != "" {
		d.Backing, err = resolve("disk "+d.ID, d.Backing)
	}
	return err
}

// fillSlots gives every disk of a Spec a place behind the bays.
func fillSlots(disks []vm.Disk, bays int) {
	used := make(map[int]bool)
	for _, d := range disks {
		used[d.Slot] = true
	}
	next := bays + 1
	for i := range disks {
		if disks[i].Slot != 0 {
			continue
		}
		for used[next] {
			next++
		}
		disks[i].Slot, used[next] = next, true
	}
}

func resolve(what, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fileError(what, path, err)
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", fileError(what, path, err)
	}
	if st.IsDir() {
		return "", fmt.Errorf("%s %s: %w: it is a directory", what, path, errs.ErrInvalid)
	}
	return abs, nil
}

// sockets are the ends of a machine's socket pairs that this process keeps, and the files that QEMU gets.
type sockets struct {
	qmp, console, agent net.Conn
	nic                 net.Conn // nil where there is none
	theirs              []*os.File
}

func newSockets(nic bool) (s *sockets, err error) {
	s = &sockets{}
	defer func() {
		if err != nil {
			s.closeOurs()
			s.closeTheirs()
		}
	}()
	for _, c := range []*net.Conn{&s.qmp, &s.console, &s.agent} {
		ours, theirs, err := pair()
		if err != nil {
			return nil, err
		}
		*c = ours
		s.theirs = append(s.theirs, theirs)
	}
	if nic {
		ours, theirs, err := pair()
		if err != nil {
			return nil, err
		}
		s.nic, s.theirs = ours, append(s.theirs, theirs)
	}
	return s, nil
}

func (s *sockets) closeOurs() {
	for _, c := range []net.Conn{s.qmp, s.console, s.agent, s.nic} {
		if c != nil {
			c.Close()
		}
	}
}

func (s *sockets) closeTheirs() {
	for _, f := range s.theirs {
		f.Close()
	}
}

// start starts QEMU and returns when it takes commands. Where it returns an error, nothing is left.
func (d *Driver) start(ctx context.Context, log *slog.Logger, path string, c command) (_ *Instance, err error) {
	s, err := newSockets(c.spec.NIC)
	if err != nil {
		return nil, err
	}
	defer s.closeTheirs()
	c.qmpFD, c.consoleFD, c.agentFD = firstFD, firstFD+1, firstFD+2
	if s.nic != nil {
		c.nicFD = firstFD + 3
	}
	if c.spec.Transport == vm.TransportVsock {
		f, cid, err := reserveCID()
		if err != nil {
			s.closeOurs()
			return nil, err
		}
		c.vsockFD, c.vsockCID = firstFD+len(s.theirs), cid
		s.theirs = append(s.theirs, f)
	} else if c.spec.Transport != vm.TransportAuto && c.spec.Transport != vm.TransportSerial {
		s.closeOurs()
		return nil, fmt.Errorf("transport %.40q: %w: use serial, vsock or leave it empty", c.spec.Transport, errs.ErrInvalid)
	}
	files := s.theirs
	var memory *os.File
	if c.ownsMemory() {
		if memory, err = ownMemory(ctx, c.spec); err != nil {
			s.closeOurs()
			return nil, err
		}
		c.memoryFD = firstFD + len(files)
		files = append(slices.Clip(files), memory)
	}
	args := c.args()
	log.Debug("QEMU command line", "args", args)
	return d.launch(ctx, log, launch{path: path, args: args, files: files, c: c, socks: s, memory: memory})
}

// launch is a QEMU to start, and what the instance shall have of it. Its files are closed by who has made them, but for memory.
type launch struct {
	path   string
	args   []string
	files  []*os.File
	c      command
	socks  *sockets
	memory *os.File // the machine's own; nil is none
	image  string   // of a QEMU, that is started; "" is the program
}

// launch starts QEMU and returns when the machine is there. Where it returns an error, nothing is left.
func (d *Driver) launch(ctx context.Context, log *slog.Logger, l launch) (*Instance, error) {
	stderr := &tailBuffer{limit: 8 << 10}
	p, err := d.spawn(l.path, l.args, stderr, l.files)
	if err != nil {
		l.socks.closeOurs()
		if l.memory != nil {
			l.memory.Close()
		}
		return nil, err
	}
	l.socks.closeTheirs()
	i := newInstance(log, l, p, stderr)
	if cerr := i.connect(ctx, l); cerr != nil {
		i.Close()
		return nil, i.startError(ctx, cerr)
	}
	return i, nil
}

// startError is the error of a start that did not get as far as QEMU taking commands. The machine has ended.
func (i *Instance) startError(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, errs.ErrUnsupported) {
		return err
	}
	return fmt.Errorf("%w: %w; QEMU ended (%w): %s", errs.ErrUnavailable, err, i.proc.end(), i.stderr)
}
