package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// The files of a machine that was saved while it ran, beside memoryFile and stateFile. Nobody changes them: they may have
// names in other directories too.
const (
	savedFile     = "saved.json"
	savedKernel   = "kernel"
	savedInit     = "initramfs"
	savedDisk     = "disk-" // before the serial number
	savedBase     = "base.img"
	maxSavedDisks = 4096
)

// fromDir is the directory in a machine's own that has the files it goes on from. overlayFile and baseFile are its data
// disk then: what differs, and from what.
const (
	fromDir     = "from"
	overlayFile = "disk.qcow2"
	baseFile    = "base.img"
)

// saved is the record of a saved machine.
type saved struct {
	Version  int         `json:"version"`
	Protocol int         `json:"protocol"` // that the agent speaks
	Shape    string      `json:"shape"`    // digest of what a machine must be that goes on from it
	Arch     string      `json:"arch"`
	CPUs     int         `json:"cpus"`
	Memory   int64       `json:"memory"`
	DiskSize int64       `json:"disk_size"` // bytes of the data disk; 0 is none
	Overlay  bool        `json:"overlay"`   // the data disk is savedDisk over savedBase, and savedBase alone otherwise
	Disks    []savedSlot `json:"disks"`
	Bays     []vm.Bay    `json:"bays,omitempty"`
}

type savedSlot struct {
	ID       string `json:"id"`
	Slot     int    `json:"slot"`
	ReadOnly bool   `json:"read_only"`
}

const savedVersion = 1

// Saved tells what was saved in a directory.
type Saved struct {
	CPUs     int
	Memory   int64 // bytes
	DiskSize int64 // bytes; 0 is a machine without a disk
}

// ReadSaved reads what Fork has written. What is not that is ErrCorrupt.
func ReadSaved(dir string) (Saved, error) {
	s, err := readSaved(dir)
	return Saved{s.CPUs, s.Memory, s.DiskSize}, err
}

func readSaved(dir string) (s saved, err error) {
	b, err := os.ReadFile(filepath.Join(dir, savedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("saved machine %s: %w", dir, errs.ErrNotFound)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("saved machine %s: %w: %w", dir, errs.ErrCorrupt, err)
	}
	if s.Version != savedVersion || s.Protocol != api.Version {
		return s, fmt.Errorf("saved machine %s: %w: it was saved by another version of this program", dir, errs.ErrUnsupported)
	}
	if len(s.Disks) > maxSavedDisks {
		return s, fmt.Errorf("saved machine %s: %w: %d disks", dir, errs.ErrCorrupt, len(s.Disks))
	}
	for _, d := range s.Disks {
		if err := (vm.Disk{ID: d.ID, Path: "x"}).Check(); err != nil { // it becomes part of a path
			return s, fmt.Errorf("saved machine %s: %w: %w", dir, errs.ErrCorrupt, err)
		}
	}
	return s, nil
}

// Fork saves the machine, which goes on, with its memory and its disks in a directory, which exists and is empty. during is
// called while the machine stands still. What is written is not synced. A machine that was not started with
// Config.Forkable is ErrUnsupported. After an error the directory may have some files.
func (m *Machine) Fork(ctx context.Context, dir string, during func() error) error {
	f, ok := m.inst.(vm.Forker)
	if !ok || !m.cfg.Forkable {
		return fmt.Errorf("fork machine %s: %w: it was not started to be forked: make it with Forkable", m.cfg.Name, errs.ErrUnsupported)
	}
	if err := m.UseDisk(ctx); err != nil { // what is on it belongs to what is saved
		return fmt.Errorf("fork machine %s: %w", m.cfg.Name, err)
	}
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if m.paused {
		return fmt.Errorf("fork machine %s: %w: it is paused: resume it first", m.cfg.Name, errs.ErrConflict)
	}
	m.pauses++ // it does not answer for a while
	shape, err := m.cfg.shape(m.spec)
	if err != nil {
		return fmt.Errorf("fork machine %s: %w", m.cfg.Name, err)
	}
	s := saved{
		Version: savedVersion, Protocol: api.Version, Shape: shape, Arch: m.spec.Arch, CPUs: m.spec.CPUs, Memory: m.spec.Memory,
		Bays: m.spec.Bays,
	}
	for name, src := range map[string]string{savedKernel: m.spec.Kernel, savedInit: m.spec.Initramfs} {
		if err := fsx.LinkFile(ctx, filepath.Join(dir, name), src); err != nil {
			return fmt.Errorf("fork machine %s: keep what it has booted: %w", m.cfg.Name, err)
		}
	}
	err = f.Fork(ctx, filepath.Join(dir, memoryFile), filepath.Join(dir, stateFile), func(disks []vm.Disk) error {
		for _, d := range disks {
			if err := s.keepDisk(ctx, dir, d); err != nil {
				return fmt.Errorf("keep disk %s: %w", d.ID, err)
			}
		}
		return during()
	})
	if err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, savedFile), b, 0o600)
}

// keepDisk copies the data disk, which is written to, and gives the others another name.
func (s *saved) keepDisk(ctx context.Context, dir string, d vm.Disk) error {
	s.Disks = append(s.Disks, savedSlot{d.ID, d.Slot, d.ReadOnly})
	path := filepath.Join(dir, savedDisk+d.ID)
	if d.ReadOnly {
		return fsx.LinkFile(ctx, path, d.Path)
	}
	base, size := d.Path, d.Path
	if d.Backing != "" {
		base, size, s.Overlay = d.Backing, d.Backing, true
		if err := fsx.CloneFile(ctx, path, d.Path); err != nil {
			return err
		}
		if err := fsx.LinkFile(ctx, filepath.Join(dir, savedBase), base); err != nil {
			return err
		}
	} else if err := fsx.CloneFile(ctx, filepath.Join(dir, savedBase), base); err != nil {
		return err
	}
	info, err := os.Stat(size)
	if err == nil {
		s.DiskSize = info.Size()
	}
	return err
}

// shape returns a digest of what a machine is.
func (cfg *Config) shape(spec vm.Spec) (string, error) {
	d, ok := cfg.Driver.(vm.Shaper)
	if !ok {
		return "", fmt.Errorf("driver %s: %w", cfg.Driver.Name(), errs.ErrUnsupported)
	}
	text, err := d.Shape(spec)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:]), nil
}

// GoOnFrom lets the next start of the machine, which has no disk yet, go on from a saved machine. What was saved may be
// removed afterwards.
func (d *Dir) GoOnFrom(ctx context.Context, dir string) error {
	s, err := readSaved(dir)
	if err != nil {
		return err
	}
	names := []string{savedKernel, savedInit, memoryFile, savedFile}
	for _, disk := range s.Disks {
		if disk.ReadOnly || s.Overlay {
			names = append(names, savedDisk+disk.ID)
		}
	}
	if s.DiskSize > 0 {
		names = append(names, savedBase)
	}
	to := filepath.Join(d.path, fromDir)
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, name := range append(names, stateFile) { // with the last it is there
		if err := fsx.LinkFile(ctx, filepath.Join(to, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("go on from a saved machine: %w", err)
		}
	}
	return nil
}

// goesOn returns the directory that the next start goes on from, where there is one.
func (d *Dir) goesOn() (dir string, ok bool) {
	if d == nil {
		return "", false
	}
	dir = filepath.Join(d.path, fromDir)
	_, err := os.Stat(filepath.Join(dir, stateFile))
	return dir, err == nil
}

// wentOn makes later starts boot. The rest of the files goes with the next one: those of disks may still be of use.
func (d *Dir) wentOn() error {
	dir := filepath.Join(d.path, fromDir)
	return errors.Join(os.Remove(filepath.Join(dir, stateFile)), os.Remove(filepath.Join(dir, memoryFile)))
}

// goOn starts the machine from what was saved. A try that failed may be repeated: it begins anew.
func goOn(ctx context.Context, cfg Config, dir string) (*Machine, error) {
	s, err := readSaved(dir)
	if err != nil {
		return nil, err
	}
	spec := vm.Spec{
		Name: cfg.Name, Arch: s.Arch, Kernel: filepath.Join(dir, savedKernel), Initramfs: filepath.Join(dir, savedInit),
		CPUs: s.CPUs, Memory: s.Memory, Console: cfg.Console, Accelerator: cfg.Accelerator, Transport: cfg.Transport,
		MemoryFile: filepath.Join(dir, memoryFile), State: filepath.Join(dir, stateFile), Forkable: cfg.Forkable, NIC: cfg.hasNIC(),
		Bays: s.Bays,
	}
	shape, err := cfg.shape(spec)
	if err != nil {
		return nil, err
	}
	if shape != s.Shape {
		return nil, fmt.Errorf("go on from a saved machine: %w: it was saved with another QEMU, or on a host of another kind", errs.ErrUnsupported)
	}
	for _, slot := range s.Disks {
		d := vm.Disk{ID: slot.ID, Slot: slot.Slot, ReadOnly: slot.ReadOnly, Path: filepath.Join(dir, savedDisk+slot.ID)}
		if !slot.ReadOnly {
			if d, err = cfg.Dir.ownDisk(ctx, dir, s, d); err != nil {
				return nil, fmt.Errorf("make the disk of a machine that goes on: %w", err)
			}
			cfg.dataDisk, cfg.diskUsed = d, true
		}
		spec.Disks = append(spec.Disks, d)
	}
	if cfg.OnBooting != nil {
		cfg.OnBooting()
	}
	m, err := launch(ctx, cfg, spec)
	if err != nil {
		return nil, err
	}
	return m, cfg.Dir.wentOn()
}

// ownDisk makes the data disk of a machine that goes on: a reflink of the saved one where the file system has them, else a
// layer over it.
func (d *Dir) ownDisk(ctx context.Context, from string, s saved, out vm.Disk) (vm.Disk, error) {
	whole := filepath.Join(d.path, diskFile)
	layer, base := filepath.Join(d.path, overlayFile), filepath.Join(d.path, baseFile)
	for _, name := range []string{whole, layer, base} { // of a try before
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return out, err
		}
	}
	if !s.Overlay {
		out.Path = whole
		if err := fsx.Reflink(whole, filepath.Join(from, savedBase)); !errors.Is(err, errors.ErrUnsupported) {
			return out, err
		}
	}
	out.Path, out.Backing = layer, base
	if err := fsx.LinkFile(ctx, out.Backing, filepath.Join(from, savedBase)); err != nil {
		return out, err
	}
	if s.Overlay {
		return out, fsx.CloneFile(ctx, out.Path, filepath.Join(from, savedDisk+out.ID))
	}
	return out, disk.CreateOverlay(out.Path, s.DiskSize)
}
