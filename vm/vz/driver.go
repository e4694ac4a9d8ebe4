// Package vz runs machines in Apple's Virtualization framework, on macOS.
//
// A machine is an object of the framework in this process; the guest itself runs in a helper of the system that ends when
// the process does, whatever ends it. The guest is reached by one connection over its virtio socket, which carries package
// mux. Disks that are known at the start are virtio block devices. The framework cannot add a disk to a running machine,
// so what is attached later, read-only, appears as a file in a directory that is shared with the guest, whose agent mounts
// it by a loop device: see bootfs.LayersParameter.
//
// A program needs the entitlement com.apple.security.virtualization to start machines. Without it Start returns an
// *EntitlementError, which says how to sign the program; command vm/vz/sign does it, also for tests.
//
// The driver needs macOS 13 or later and a program that was built with cgo. Elsewhere everything here compiles, and
// returns an error that wraps ErrUnsupported. All that calls the framework is behind the interface framework: the rest is
// plain Go, which is tested on every system.
package vz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Config configures a driver. The zero value works.
type Config struct {
	Logger *slog.Logger // nil is silent
}

// Driver starts machines in the Virtualization framework. Its methods may be called from many goroutines.
type Driver struct {
	log    *slog.Logger
	system system
}

var (
	_ vm.Driver = (*Driver)(nil)
	_ vm.Shaper = (*Driver)(nil)
)

// New returns a driver. It looks at nothing: what is missing shows in Start and in Probe.
func New(cfg Config) *Driver { return newDriver(cfg, thisSystem()) }

func newDriver(cfg Config, s system) *Driver {
	d := &Driver{log: cfg.Logger, system: s}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name returns "vz".
func (d *Driver) Name() string { return "vz" }

// Capabilities tells what machines of the driver can do on this Mac. Where the driver cannot start any, nothing.
func (d *Driver) Capabilities() vm.Capabilities {
	h, err := d.system.look()
	if err != nil || h.check() != nil {
		return vm.Capabilities{}
	}
	return h.capabilities()
}

// Probe returns nil where the driver can start machines on this host as far as can be told before it does, and otherwise
// an error that wraps ErrUnsupported. It does not look for the entitlement.
func (d *Driver) Probe() error {
	h, err := d.system.look()
	if err != nil {
		return err
	}
	return h.check()
}

// Start starts a machine. See vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start machine: %w", context.Cause(ctx))
	}
	p, err := d.plan(spec)
	if err != nil {
		return nil, err
	}
	if err := p.checkFiles(); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", p.name, err)
	}
	i, err := d.start(ctx, p, spec.Console)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", p.name, err)
	}
	return i, nil
}

// plan returns what the framework is told for a Spec.
func (d *Driver) plan(spec vm.Spec) (plan, error) {
	h, err := d.system.look()
	if err != nil {
		return plan{}, err
	}
	if spec, err = spec.Complete(h.arch); err != nil {
		return plan{}, err
	}
	p, err := newPlan(h, spec)
	if err != nil {
		return plan{}, fmt.Errorf("start machine %s: %w", spec.Name, err)
	}
	return p, nil
}

func (d *Driver) start(ctx context.Context, p plan, tee io.Writer) (*Instance, error) {
	layers, err := newLayers(p.dir)
	if err != nil {
		return nil, err
	}
	p.layers = layers.shared
	d.log.Info("starting a machine of the Virtualization framework", "machine", p.name, "cpus", p.cpus, "memory", p.memory)
	d.log.Debug("kernel command line", "machine", p.name, "cmdline", p.cmdline)
	var nic net.Conn
	var theirs *os.File
	if p.nic {
		if nic, theirs, err = nicPair(); err != nil {
			return nil, errors.Join(err, layers.close())
		}
	}
	fw, output, err := d.system.open(p, theirs)
	if err != nil {
		if nic != nil {
			nic.Close()
		}
		return nil, errors.Join(explain(err), layers.close())
	}
	i := newInstance(d.log.With("machine", p.name), p, fw, output, tee, layers)
	i.nic = nic
	go i.own(output)
	if err := i.begin(ctx, p); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// Shape returns what must be the same for a state to be restored. See vm.Shaper. It is ErrUnsupported where the framework
// cannot save machines: before macOS 14, on Intel, and for a Spec with disks or shares.
func (d *Driver) Shape(spec vm.Spec) (string, error) {
	p, err := d.plan(spec)
	if err != nil {
		return "", err
	}
	if err := p.saveable(); err != nil {
		return "", err
	}
	if err := d.system.saves(p); err != nil {
		return "", explain(err)
	}
	return p.shape(), nil
}

// system is what the driver needs of the operating system.
type system struct {
	look func() (host, error) // finds out what the host is
	// open makes a machine that is not started, and its console. It owns the guest's end of the network interface, which may
	// be nil, from its call on.
	open  func(p plan, nic *os.File) (framework, io.ReadCloser, error)
	saves func(plan) error // tells whether such a machine can be saved
}

// checkFiles looks whether what the plan names is there.
func (p plan) checkFiles() error {
	files := map[string]string{"kernel": p.kernel, "initramfs": p.initramfs, "state": p.state}
	for _, d := range p.disks {
		files["disk "+d.ID] = d.Path
	}
	for what, path := range files {
		if path == "" {
			continue
		}
		if err := checkFile(what, path, false); err != nil {
			return err
		}
	}
	for _, s := range p.shares {
		if err := checkFile("share "+s.Tag, s.Path, true); err != nil {
			return err
		}
	}
	return nil
}

func checkFile(what, path string, dir bool) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: %w", what, path, errs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case st.IsDir() && !dir:
		return fmt.Errorf("%s %s: %w: it is a directory", what, path, errs.ErrInvalid)
	case !st.IsDir() && dir:
		return fmt.Errorf("%s %s: %w: it is no directory", what, path, errs.ErrInvalid)
	}
	return nil
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}
