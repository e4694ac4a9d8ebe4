package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// stateFD is the name under which QEMU keeps the file that it was passed.
const stateFD = "state"

// Shape returns what must be the same for a state to be restored: the QEMU and its arguments. See vm.Shaper. A machine
// that uses hardware virtualisation or AF_VSOCK is ErrUnsupported.
func (d *Driver) Shape(spec vm.Spec) (string, error) {
	h := thisHost()
	spec, err := spec.Complete(h.arch)
	if err != nil {
		return "", err
	}
	if spec.Transport == vm.TransportVsock {
		return "", fmt.Errorf("save a machine with transport vsock: %w: its context ID is part of it", errs.ErrUnsupported)
	}
	path, err := find(d.binary, h.os, spec.Arch)
	if err != nil {
		return "", err
	}
	bin, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	accel, _, err := h.choose(spec.Arch, spec.Accelerator)
	if err != nil {
		return "", err
	}
	// What is a path or a name is left out: the caller knows the kernel and the initramfs by their content.
	spec.Name, spec.Kernel, spec.Initramfs, spec.MemoryFile, spec.State, spec.Disks, spec.Forkable, spec.OwnMemory = "m", "k", "i", "f", "", nil, false, false
	if accel != vm.AcceleratorTCG {
		return "", fmt.Errorf("save a machine that runs with %s: %w: this is proved for software emulation only", accel, errs.ErrUnsupported)
	}
	c := command{spec: spec, accel: accel, tsc: coarse(d.tsc.kHz())}
	if spec.NIC {
		c.nicFD = firstFD + 3
	}
	parts := append(c.args(), path, bin.ModTime().UTC().String(), strconv.FormatInt(bin.Size(), 10))
	return strings.Join(parts, "\x00"), nil
}

// Snapshot saves the machine. See vm.Snapshotter. It takes some 10 ms: memory that is in a file is not written again. With
// OwnMemory it saves QEMU too, where it can, in an image beside the state; that takes 0.1 s.
func (i *Instance) Snapshot(ctx context.Context, path string) (err error) {
	if i.spec.MemoryFile == "" || i.spec.State != "" && !i.spec.OwnMemory {
		return fmt.Errorf("save machine %s: %w: it was not started with a memory file of its own", i.life.Name, errs.ErrUnsupported)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save machine %s: %w", i.life.Name, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("save machine %s: %w", i.life.Name, err), os.Remove(path))
		}
	}()
	if err := i.Pause(ctx); err != nil {
		return err
	}
	if i.spec.OwnMemory { // what QEMU has in its memory from a boot is nothing for others
		if err := i.saveImage(ctx, path+imageSuffix); err != nil {
			i.log.Info("machines will go on from the state, without an image of QEMU", "reason", err)
		}
	}
	if err := i.migrate(ctx, f, "migrate"); err != nil {
		return err
	}
	return f.Sync()
}

// restore lets a machine that waits for it go on from a saved state.
func (i *Instance) restore(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := i.migrate(ctx, f, "migrate-incoming"); err != nil {
		return err
	}
	return i.Resume(ctx)
}

// migrate runs a migration to or from a file and waits for its end. Memory that is in a file is left out of it.
func (i *Instance) migrate(ctx context.Context, f *os.File, command string) error {
	caps := map[string]any{"capabilities": []map[string]any{
		{"capability": "x-ignore-shared", "state": true},
		{"capability": "events", "state": true},
	}}
	if err := i.execute(ctx, "migrate-set-capabilities", caps, nil); err != nil {
		return err
	}
	if err := i.qmp.executeWith(ctx, f, "getfd", map[string]any{"fdname": stateFD}, nil); err != nil {
		return err
	}
	select {
	case <-i.migrated: // of one that nobody waited for
	default:
	}
	if err := i.execute(ctx, command, map[string]any{"uri": "fd:" + stateFD}, nil); err != nil {
		return err
	}
	select {
	case status := <-i.migrated:
		if status != "completed" {
			return fmt.Errorf("%w: the state could not be transferred: %s", errs.ErrUnavailable, i.stderr)
		}
		return nil
	case <-i.life.Context().Done():
		return i.life.Ended()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
