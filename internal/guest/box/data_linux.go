package box

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Where containers write: below memoryDir each has a tmpfs of its own; diskDir is where the data disk is mounted.
const (
	memoryDir     = "/run/c"
	memoryVolumes = "/run/v"
	diskDir       = "/run/d"
)

// The directories of a data disk.
const (
	diskContainers = diskDir + "/c"     // has one directory per container
	diskVolumes    = diskDir + "/v"     // has one directory per volume
	diskTrash      = diskDir + "/trash" // what is being deleted
)

// data is the place where containers write: in memory, or on the machine's data disk. It is in memory unless useDisk is
// called before the first container.
type data struct {
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	decided bool          // there was a container, or useDisk
	disk    bool          // the data is on a disk
	needed  chan struct{} // closed when the disk is to be mounted as soon as it is there
	need    func()        // closes needed
	ready   chan struct{} // closed when a disk is mounted, or err is set
	err     error
	trash   *trash // nil before ready, and in memory

	keep map[string]bool // paths that are not swept; nil where nothing is
}

func newData() *data {
	d := &data{needed: make(chan struct{}), ready: make(chan struct{})}
	d.need = sync.OnceFunc(func() { close(d.needed) })
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// useDisk puts the data on a disk, which mount mounts at diskDir as soon as it can, and where later is set not before it is
// needed. Containers wait for it. What sweep does not name is deleted, where it is not nil.
func (d *data) useDisk(mount func(context.Context) error, later bool, sweep *Known) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.decided {
		return fmt.Errorf("use a data disk: %w: the guest is configured, or has containers already", errs.ErrConflict)
	}
	d.decided, d.disk = true, true
	if !later {
		d.need()
	}
	d.wg.Go(func() {
		defer close(d.ready)
		select {
		case <-d.needed:
		case <-d.ctx.Done():
			d.err = d.ctx.Err()
			return
		}
		if d.err = mount(d.ctx); d.err == nil {
			d.err = d.open(sweep)
		}
	})
	return nil
}

// Known are the ids of what there are records of.
type Known struct {
	Containers, Volumes []string
}

// open prepares the disk that is mounted.
func (d *data) open(sweep *Known) error {
	for _, dir := range []string{diskContainers, diskVolumes, diskTrash} {
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return fmt.Errorf("prepare the data disk: %w", err)
		}
	}
	d.trash = newTrash(diskTrash)
	d.wg.Go(func() { d.trash.run(d.ctx) })
	if sweep != nil {
		d.keep = make(map[string]bool)
		for dir, known := range map[string][]string{diskContainers: sweep.Containers, diskVolumes: sweep.Volumes} {
			for _, id := range known {
				d.keep[filepath.Join(dir, id)] = true
			}
		}
		d.wg.Go(d.sweep)
	}
	return nil
}

// sweep deletes what is on the disk and not to be kept, while it is in use. What cannot be listed or deleted is there when
// the machine is started again.
func (d *data) sweep() {
	for _, dir := range []string{diskContainers, diskVolumes} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return
		}
		for _, e := range entries {
			if d.ctx.Err() != nil || d.claim(filepath.Join(dir, e.Name()), false) != nil {
				return
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep = nil
}

// claim deletes what a place on the disk has of a container or volume that nobody knows. It is kept from then on where it is
// used.
func (d *data) claim(path string, use bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keep == nil || d.keep[path] {
		return nil
	}
	if use {
		d.keep[path] = true
	}
	return d.trash.take(path)
}

// wait returns where the data is, when that can be used.
func (d *data) wait(ctx context.Context) (disk bool, err error) {
	d.mu.Lock()
	d.decided = true
	disk = d.disk
	d.mu.Unlock()
	if !disk {
		return false, nil
	}
	d.need()
	select {
	case <-d.ready:
		return true, d.err
	case <-ctx.Done():
		return true, fmt.Errorf("wait for the data disk: %w", ctx.Err())
	}
}

// later runs f in the background; close waits for it. The caller holds a container, so close is not under way.
func (d *data) later(f func()) { d.wg.Go(f) }

// close unmounts the disk. What is in the trash is deleted next time.
func (d *data) close() error {
	d.cancel()
	d.wg.Wait()
	d.mu.Lock()
	d.decided = true
	disk := d.disk
	d.mu.Unlock()
	if !disk || d.err != nil {
		return nil
	}
	err := unix.Unmount(diskDir, 0)
	if err == unix.EBUSY { // a process that could not be killed has a file open: nothing may be written any more
		err = unix.Mount("", diskDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("unmount the data disk: %w", err)
	}
	return nil
}

// place is a directory of its own for one container or volume.
type place struct {
	dir   string
	trash *trash // of the disk it is on; nil in memory, where the place is a tmpfs, which goes at once and whole
}

func (d *data) place(disk bool, onDisk, inMemory, id string) (place, error) {
	if disk {
		path := filepath.Join(onDisk, id)
		return place{path, d.trash}, d.claim(path, true)
	}
	return place{filepath.Join(inMemory, id), nil}, nil
}

// make makes the place, and tells whether it was there.
func (p place) make() (earlier bool, err error) {
	switch err := os.Mkdir(p.dir, 0o700); {
	case errors.Is(err, os.ErrExist):
		return true, nil
	case err != nil:
		return false, err
	}
	if p.trash == nil {
		if err := unix.Mount("tmpfs", p.dir, "tmpfs", unix.MS_NODEV, "mode=0700"); err != nil {
			os.Remove(p.dir)
			return false, fmt.Errorf("mount: %w", err)
		}
	}
	return false, nil
}

// remove deletes the place. It may be called again.
func (p place) remove() error {
	if p.trash != nil {
		return p.trash.take(p.dir)
	}
	if err := unix.Unmount(p.dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", p.dir, err)
	}
	if err := os.Remove(p.dir); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove %s: %w", p.dir, err)
	}
	return nil
}

// scratch is the place of a container for what it writes, and for the files that the agent makes for it.
type scratch struct {
	place
	earlier bool // a container of the same ID made it
}

// scratch returns the place of a container: what one of the same ID has left, or an empty one. It waits for a data disk.
func (d *data) scratch(ctx context.Context, id string) (scratch, error) {
	disk, err := d.wait(ctx)
	if err != nil {
		return scratch{}, err
	}
	s := scratch{}
	if s.place, err = d.place(disk, diskContainers, memoryDir, id); err != nil {
		return s, err
	}
	if s.earlier, err = s.make(); err != nil {
		return s, fmt.Errorf("make scratch space: %w", err)
	}
	for _, dir := range []string{s.upper(), s.work(), s.logs()} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			s.undo()
			return s, fmt.Errorf("make scratch space: %w", err)
		}
	}
	return s, nil
}

// find returns the place that a container has left. Where there is none it is ErrNotFound.
func (d *data) find(ctx context.Context, id string) (scratch, error) {
	disk, err := d.wait(ctx)
	if err != nil {
		return scratch{}, err
	}
	s := scratch{earlier: true}
	if s.place, err = d.place(disk, diskContainers, memoryDir, id); err != nil {
		return s, err
	}
	if _, err := os.Lstat(s.dir); errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("data of container %s: %w", id, errs.ErrNotFound)
	} else if err != nil {
		return s, fmt.Errorf("find data of container %s: %w", id, err)
	}
	return s, nil
}

func (s scratch) upper() string { return s.dir + "/u" }
func (s scratch) work() string  { return s.dir + "/w" }

// logs is the directory of the container's log.
func (s scratch) logs() string { return s.dir + "/l" }

// undo deletes the place where it was made just now.
func (s scratch) undo() {
	if !s.earlier {
		s.remove()
	}
}

// Leftovers names what containers and volumes have on the disk and in memory, and what is being deleted.
func (b *Box) Leftovers() (found []string, err error) {
	for _, dir := range []string{diskContainers, diskVolumes, diskTrash, memoryDir, memoryVolumes} {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list what containers wrote: %w", err)
		}
		for _, e := range list {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found, nil
}

// Forget deletes what a container wrote of which there is no sandbox.
func (b *Box) Forget(ctx context.Context, id string) error {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := b.data.Load().find(ctx, id)
	if err != nil {
		return err
	}
	return s.remove()
}

// LogDir returns the directory for the log of a container that is there, or that has left its data. Where there is
// neither it is ErrNotFound.
func (b *Box) LogDir(ctx context.Context, id string) (string, error) {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	s, err := b.data.Load().find(ctx, id)
	return s.logs(), err
}

// UseDisk lets containers write on the data disk with the serial number: an ext4, whose journal is replayed where the
// machine was killed. It returns at once; Create waits until the disk is mounted, which with later only begins then. What
// containers have left on it is there again for those of the same ID. What sweep does not name is deleted; nil deletes
// nothing. After the first Create, or a second time, it is ErrConflict.
func (b *Box) UseDisk(serial string, later bool, sweep *Known) error {
	return b.data.Load().useDisk(func(ctx context.Context) error {
		select {
		case <-b.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		if b.err != nil {
			return b.err
		}
		device, err := b.layers.disks.find(ctx, serial)
		if err != nil {
			return fmt.Errorf("data disk: %w", err)
		}
		return mountData(device)
	}, later, sweep)
}

// LeaveDisk unmounts the data disk and lets the box be as it was before UseDisk. There are no containers, and none is made
// meanwhile.
func (b *Box) LeaveDisk() error { return b.data.Swap(newData()).close() }

// flushAfter is the age, in hundredths of a second, at which what was written to the data disk leaves the guest's memory
// for the host's, where the death of the machine does not reach it. The kernel looks as often.
const flushAfter = "100"

// FlushEarly makes what is written to disks leave the guest within two seconds or so, whether its writer syncs it or not.
func FlushEarly() error {
	for _, name := range []string{"dirty_expire_centisecs", "dirty_writeback_centisecs"} {
		if err := os.WriteFile("/proc/sys/vm/"+name, []byte(flushAfter), 0); err != nil {
			return fmt.Errorf("have disks written: %w", err)
		}
	}
	return nil
}

// mountData mounts the data disk. No thread of the kernel goes through its tables afterwards. What is deleted on it is
// discarded, so that the host's file gets holes. When something of it cannot be written any more, it becomes read-only: a
// journal with gaps must not go on.
func mountData(device string) error {
	const options = "discard,errors=remount-ro,commit=1,noinit_itable,no_prefetch_block_bitmaps"
	err := unix.Mount("/dev/"+device, diskDir, "ext4", unix.MS_NODEV|unix.MS_NOATIME, options)
	if err == unix.EINVAL || err == unix.EUCLEAN {
		return fmt.Errorf("mount the data disk: %w: it is not a sound ext4: check its file with e2fsck -f, or remove it: %w", errs.ErrCorrupt, err)
	}
	if err != nil {
		return fmt.Errorf("mount the data disk: %w", err)
	}
	return nil
}
