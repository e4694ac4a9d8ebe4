package qemu

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// disk is a disk of a running machine.
type disk struct {
	vm.Disk      // with its slot
	busy    bool // being attached or detached
}

// AttachDisk adds a disk. See vm.DiskAttacher. When ctx ends first, the disk is taken out again.
func (i *Instance) AttachDisk(ctx context.Context, d vm.Disk) error {
	if err := d.Check(); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if err := resolveDisk(&d); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if err := i.checkSlot(d); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if err := i.reserve(&d); err != nil {
		return err
	}
	return i.disjoin(ctx, "attach", d.ID, func(abandoned func() bool) error {
		err := i.attach(d)
		if err == nil && abandoned() {
			err = i.detach(d)
			i.release(d.ID, err == nil)
			return err
		}
		i.release(d.ID, err != nil)
		return err
	})
}

// checkSlot returns ErrInvalid for a disk that shall have a slot which is no bay, or not for such a disk.
func (i *Instance) checkSlot(d vm.Disk) error {
	if d.Slot == 0 {
		return nil
	}
	if d.Slot < 0 || d.Slot > len(i.spec.Bays) {
		return fmt.Errorf("disk %s: %w slot %d: a running machine chooses the slot, but for bays, of which it has %d", d.ID, errs.ErrInvalid, d.Slot, len(i.spec.Bays))
	}
	b := i.spec.Bays[d.Slot-1]
	if b.ReadOnly != d.ReadOnly {
		return fmt.Errorf("disk %s in bay %d: %w: either of them is read-only: choose another slot", d.ID, d.Slot, errs.ErrInvalid)
	}
	return checkBay(b, d)
}

// DetachDisk takes a disk out. See vm.DiskAttacher. When ctx ends first, the disk goes nevertheless.
func (i *Instance) DetachDisk(ctx context.Context, id string) error {
	d, err := i.claim(id)
	if err != nil {
		return err
	}
	return i.disjoin(ctx, "detach", id, func(func() bool) error {
		err := i.detach(d)
		i.release(id, err == nil)
		return err
	})
}

// disjoin runs f to its end for the machine, and waits for it until ctx ends. f may ask whether nobody waits any more.
func (i *Instance) disjoin(ctx context.Context, verb, id string, f func(abandoned func() bool) error) error {
	result := make(chan error, 1)
	abandoned := func() bool { return ctx.Err() != nil }
	if !i.work.Go(func() { result <- f(abandoned) }) {
		return fmt.Errorf("%s disk %s: %w", verb, id, i.life.Ended())
	}
	select {
	case err := <-result:
		if err != nil && i.life.Context().Err() != nil {
			err = i.life.Ended()
		}
		if err == nil && verb == "attach" && ctx.Err() != nil {
			err = context.Cause(ctx) // it may have been taken out again
		}
		if err != nil {
			return fmt.Errorf("%s disk %s: %w", verb, id, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s disk %s: %w", verb, id, context.Cause(ctx))
	}
}

// reserve notes a new disk, and gives it the lowest free slot that is no bay where it has none.
func (i *Instance) reserve(d *vm.Disk) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.disks[d.ID] != nil {
		return fmt.Errorf("disk %s: %w", d.ID, errs.ErrExists)
	}
	used := make(map[int]bool, len(i.disks))
	for _, d := range i.disks {
		used[d.Slot] = true
	}
	if d.Slot != 0 && used[d.Slot] {
		return fmt.Errorf("disk %s: %w: bay %d has a disk already", d.ID, errs.ErrExists, d.Slot)
	}
	if d.Slot == 0 {
		for d.Slot = len(i.spec.Bays) + 1; used[d.Slot]; {
			d.Slot++
		}
	}
	if d.Slot > vm.MaxSlot {
		return fmt.Errorf("disk %s: %w: the machine has %d disks already", d.ID, errs.ErrUnavailable, len(i.disks))
	}
	i.disks[d.ID] = &disk{Disk: *d, busy: true}
	return nil
}

// claim marks a disk as being detached.
func (i *Instance) claim(id string) (vm.Disk, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	d := i.disks[id]
	switch {
	case d == nil:
		return vm.Disk{}, fmt.Errorf("disk %.40q: %w", id, errs.ErrNotFound)
	case d.busy:
		return vm.Disk{}, fmt.Errorf("disk %s: %w: it is being attached or detached", id, errs.ErrConflict)
	}
	d.busy = true
	return d.Disk, nil
}

// release ends what reserve or claim began.
func (i *Instance) release(id string, gone bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if gone {
		delete(i.disks, id)
		return
	}
	i.disks[id].busy = false
}

func (i *Instance) attach(d vm.Disk) error {
	if d.Slot <= len(i.spec.Bays) {
		return i.fill(d)
	}
	if err := i.qmp.execute(i.life.Context(), "blockdev-add", blockNode(d), nil); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	if err := i.qmp.execute(i.life.Context(), "device_add", diskDevice(d, d.Slot-1), nil); err != nil {
		i.qmp.execute(i.life.Context(), "blockdev-del", map[string]any{"node-name": diskNode + d.ID}, nil)
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}

func (i *Instance) detach(d vm.Disk) error {
	if d.Slot <= len(i.spec.Bays) {
		return i.clear(d)
	}
	return i.remove(diskNode+d.ID, diskNode+d.ID)
}

// remove takes a device out, and then its block node.
func (i *Instance) remove(dev, node string) error {
	gone := make(chan struct{})
	i.mu.Lock()
	i.deleted[dev] = gone
	i.mu.Unlock()
	if err := i.qmp.execute(i.life.Context(), "device_del", map[string]any{"id": dev}, nil); err != nil {
		i.mu.Lock()
		delete(i.deleted, dev)
		i.mu.Unlock()
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	select {
	case <-gone:
	case <-i.life.Context().Done():
		return context.Cause(i.life.Context())
	}
	if err := i.qmp.execute(i.life.Context(), "blockdev-del", map[string]any{"node-name": node}, nil); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}
