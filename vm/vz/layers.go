package vz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// layersName is the directory of the files that are shared with the guest, in the one that a Spec names.
const layersName = "vz-layers"

// layers is the directory that a machine's guest sees: what is attached while it runs is a hard link in it. The guest thus
// sees the files that it was given and no others of their directory.
type layers struct {
	shared string // path

	mu   sync.Mutex
	gone bool
}

// newLayers makes the directory, empty, below dir, or a temporary one where that is "".
func newLayers(dir string) (*layers, error) {
	if dir == "" {
		shared, err := os.MkdirTemp("", "arcbox-"+layersName)
		if err != nil {
			return nil, fmt.Errorf("make directory of layers: %w", err)
		}
		return &layers{shared: shared}, nil
	}
	shared := filepath.Join(dir, layersName)
	if err := os.RemoveAll(shared); err != nil { // of a process that was killed
		return nil, fmt.Errorf("make directory of layers: %w", err)
	}
	if err := os.MkdirAll(shared, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of layers: %w", err)
	}
	return &layers{shared: shared}, nil
}

// add makes a disk's file appear in the directory under its ID.
func (l *layers) add(d vm.Disk) error {
	path, err := filepath.EvalSymlinks(d.Path) // a link to a symbolic link leads nowhere in the guest
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errs.ErrNotFound, err)
	}
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: %w: it is no regular file", d.Path, errs.ErrInvalid)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return errs.ErrClosed
	}
	err = os.Link(path, filepath.Join(l.shared, d.ID))
	switch {
	case errors.Is(err, fs.ErrExist):
		return errs.ErrExists
	case isCrossDevice(err):
		return fmt.Errorf("%w: %w; let the machine's directory be on the file system of the disk's file", errs.ErrUnsupported, err)
	}
	return err
}

// remove takes the file with the ID away.
func (l *layers) remove(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return errs.ErrClosed
	}
	err := os.Remove(filepath.Join(l.shared, id))
	if errors.Is(err, fs.ErrNotExist) {
		return errs.ErrNotFound
	}
	return err
}

// close removes the directory. Who adds to it afterwards gets ErrClosed.
func (l *layers) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	return os.RemoveAll(l.shared)
}

// AttachDisk shows a read-only disk to the guest, as a file. See vm.DiskAttacher. A disk that can be written is
// ErrUnsupported: it belongs into Spec.Disks.
func (i *Instance) AttachDisk(ctx context.Context, d vm.Disk) error {
	err := d.Check()
	if err == nil && !d.ReadOnly {
		err = fmt.Errorf("%w: the framework takes disks that can be written at the start only: put it into Spec.Disks", errs.ErrUnsupported)
	}
	if err == nil && d.Backing != "" {
		err = fmt.Errorf("%w: the guest takes raw images only", errs.ErrUnsupported)
	}
	return i.change(ctx, "attach", d.ID, err, func() error { return i.layers.add(d) })
}

// DetachDisk takes a disk that was attached while the machine ran out of the guest's sight. See vm.DiskAttacher. It does
// not wait for the guest: what the guest has mounted stays readable until it unmounts it. A disk of the start is
// ErrUnsupported.
func (i *Instance) DetachDisk(ctx context.Context, id string) error {
	err := (vm.Disk{ID: id, Path: "-"}).Check()
	if err != nil {
		err = fmt.Errorf("%w: %w", errs.ErrNotFound, err)
	}
	if i.fixed[id] {
		err = fmt.Errorf("%w: the framework cannot take a disk of the start out again", errs.ErrUnsupported)
	}
	return i.change(ctx, "detach", id, err, func() error { return i.layers.remove(id) })
}

// change changes the directory of layers, unless there is an error already.
func (i *Instance) change(ctx context.Context, verb, id string, err error, f func() error) error {
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case i.life.Context().Err() != nil:
		err = i.life.Ended()
	case verb == "attach" && i.fixed[id]:
		err = errs.ErrExists
	default:
		err = f()
	}
	if err != nil {
		return fmt.Errorf("%s disk %.40q: %w", verb, id, err)
	}
	return nil
}
