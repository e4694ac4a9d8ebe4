package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// ownsMemory tells whether the machine's memory is in a file of its own that has no name.
func (c command) ownsMemory() bool {
	shared := c.spec.State != "" && !c.spec.OwnMemory
	return c.spec.Forkable || c.spec.ReturnMemory && (shared || c.spec.MemoryFile == "")
}

// ownMemory makes the memory of a machine that can be forked or gives memory back: a file without a name, which nobody has to clean up, and
// which no disk is written for. It begins as a copy of the memory file where there is one.
func ownMemory(ctx context.Context, spec vm.Spec) (*os.File, error) {
	f, err := anonymous("arcbox-memory", spec.Memory)
	if err != nil {
		return nil, fmt.Errorf("make the machine's memory: %w", err)
	}
	if spec.State == "" {
		return f, nil
	}
	from, err := os.Open(spec.MemoryFile)
	if err == nil {
		err = fsx.CopySparse(ctx, f, from)
		from.Close()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the memory to go on from: %w", err)
	}
	return f, nil
}

// resumeTime is how long the machine may take to go on after a fork whose caller's context has ended.
const resumeTime = 30 * time.Second

// Fork saves the machine while it runs. See vm.Forker. The machine stands still for as long as it takes to copy the memory
// that it uses and the disks.
func (i *Instance) Fork(ctx context.Context, memory, state string, copy func([]vm.Disk) error) (err error) {
	if !i.spec.Forkable {
		return fmt.Errorf("fork machine %s: %w: it was not started to be forked", i.life.Name, errs.ErrUnsupported)
	}
	i.forking.Lock()
	defer i.forking.Unlock()
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
			err = fmt.Errorf("fork machine %s: %w", i.life.Name, err)
		}
	}()
	var files [2]*os.File
	for k, path := range []string{memory, state} {
		if files[k], err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		made = append(made, path)
		defer files[k].Close()
	}
	disks, err := i.freezeDisks()
	if err != nil {
		return err
	}
	defer i.thawDisks(disks)
	defer func() { // also where ctx ends while QEMU is asked to pause: it may do it all the same
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTime)
		defer cancel()
		if err != nil { // the migration may be under way
			err = errors.Join(err, i.execute(ctx, "migrate_cancel", nil, nil), i.finalized(ctx))
		}
		err = errors.Join(err, i.Resume(ctx))
	}()
	if err := i.Pause(ctx); err != nil {
		return err
	}
	if err := i.migrate(ctx, files[1], "migrate"); err != nil {
		return err
	}
	if err := i.finalized(ctx); err != nil {
		return err
	}
	if err := fsx.CopySparse(ctx, files[0], i.memory); err != nil {
		return err
	}
	return copy(disks)
}

// finalizePause is the time between two looks for the end of a migration.
const finalizePause = time.Millisecond

// finalized waits until the machine can go on after its state was written: QEMU says that a migration is completed a moment
// before, and has no event for the moment itself.
func (i *Instance) finalized(ctx context.Context) error {
	t := time.NewTicker(finalizePause)
	defer t.Stop()
	for {
		var is struct {
			Status string `json:"status"`
		}
		if err := i.execute(ctx, "query-status", nil, &is); err != nil || is.Status != "finish-migrate" {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// freezeDisks returns the disks, by slot, and keeps them from being detached. One that comes or goes is ErrConflict.
func (i *Instance) freezeDisks() ([]vm.Disk, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []vm.Disk
	for _, d := range i.disks {
		if d.busy {
			return nil, fmt.Errorf("%w: disk %s is being attached or detached: try again", errs.ErrConflict, d.ID)
		}
		all = append(all, d.Disk)
	}
	for _, d := range all {
		i.disks[d.ID].busy = true
	}
	slices.SortFunc(all, func(a, b vm.Disk) int { return cmp.Compare(a.Slot, b.Slot) })
	return all, nil
}

func (i *Instance) thawDisks(disks []vm.Disk) {
	for _, d := range disks {
		i.release(d.ID, false)
	}
}
