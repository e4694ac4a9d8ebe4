package qemu

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// maxLUNs is how many disks a virtio-scsi target takes.
const maxLUNs = 16384

// disk is a disk of a running machine.
type disk struct {
	vm.Disk
	lun  int
	busy bool // being attached or detached
}

// AttachDisk adds a disk. See vm.DiskAttacher. When ctx ends first, the disk is taken out again.
func (i *Instance) AttachDisk(ctx context.Context, d vm.Disk) error {
	if err := d.Check(); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if err := resolveDisk(&d); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if d.Slot != 0 {
		return fmt.Errorf("attach disk %s: %w: a running machine chooses the slot", d.ID, errs.ErrInvalid)
	}
	lun, err := i.reserve(d)
	if err != nil {
		return err
	}
	return i.disjoin(ctx, "attach", d.ID, func(abandoned func() bool) error {
		err := i.attach(d, lun)
		if err == nil && abandoned() {
			err = i.detach(d.ID)
			i.release(d.ID, err == nil)
			return err
		}
		i.release(d.ID, err != nil)
		return err
	})
}

// DetachDisk takes a disk out. See vm.DiskAttacher. When ctx ends first, the disk goes nevertheless.
func (i *Instance) DetachDisk(ctx context.Context, id string) error {
	if err := i.claim(id); err != nil {
		return err
	}
	return i.disjoin(ctx, "detach", id, func(func() bool) error {
		err := i.detach(id)
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

// reserve takes the lowest free number on the bus for a new disk.
func (i *Instance) reserve(d vm.Disk) (lun int, err error) {
	id := d.ID
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.disks[id] != nil {
		return 0, fmt.Errorf("disk %s: %w", id, errs.ErrExists)
	}
	used := make(map[int]bool, len(i.disks))
	for _, d := range i.disks {
		used[d.lun] = true
	}
	for used[lun] {
		lun++
	}
	if lun >= maxLUNs {
		return 0, fmt.Errorf("disk %s: %w: the machine has %d disks already", id, errs.ErrUnavailable, len(i.disks))
	}
	i.disks[id] = &disk{Disk: d, lun: lun, busy: true}
	return lun, nil
}

// claim marks a disk as being detached.
func (i *Instance) claim(id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	d := i.disks[id]
	switch {
	case d == nil:
		return fmt.Errorf("disk %.40q: %w", id, errs.ErrNotFound)
	case d.busy:
		return fmt.Errorf("disk %s: %w: it is being attached or detached", id, errs.ErrConflict)
	}
	d.busy = true
	return nil
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

func (i *Instance) attach(d vm.Disk, lun int) error {
	if err := i.qmp.execute(i.life.Context(), "blockdev-add", blockNode(d), nil); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	if err := i.qmp.execute(i.life.Context(), "device_add", diskDevice(d, lun), nil); err != nil {
		i.qmp.execute(i.life.Context(), "blockdev-del", map[string]any{"node-name": diskNode + d.ID}, nil)
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}

func (i *Instance) detach(id string) error {
	dev := diskNode + id
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
	if err := i.qmp.execute(i.life.Context(), "blockdev-del", map[string]any{"node-name": dev}, nil); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}
