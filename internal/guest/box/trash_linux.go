package box

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// trash is a directory whose content is deleted, little by little. A container may have made trees that are deeper than
// there is memory for a recursion or names can be long: directories are moved up to the trash until each is empty.
type trash struct {
	dir  string
	base string // begins the names of one boot: none of another
	next atomic.Uint64
	wake chan struct{}
}

func newTrash(dir string) *trash {
	return &trash{dir: dir, base: rand.Text()[:8] + "-", wake: make(chan struct{}, 1)}
}

func (t *trash) name() string { return t.base + strconv.FormatUint(t.next.Add(1), 10) }

// take moves a file or directory into the trash. What does not exist is no error, and neither is a disk that has become
// read-only, because the host's is full or broken: nothing can be deleted then, and what nobody knows is swept when the
// machine is started again.
func (t *trash) take(path string) error {
	err := os.Rename(path, filepath.Join(t.dir, t.name()))
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("remove scratch space: %w", err)
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return nil
}

// run deletes what is in the trash, and what comes, until ctx ends.
func (t *trash) run(ctx context.Context) {
	for {
		for t.empty(ctx) {
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return
		}
	}
}

// empty goes through the trash once. It tells whether it has deleted something, so that another time is worth while: the
// directories that it has moved up are there.
func (t *trash) empty(ctx context.Context) (some bool) {
	dir, err := os.Open(t.dir)
	if err != nil {
		return false
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if ctx.Err() != nil {
				return false
			}
			if t.delete(ctx, int(dir.Fd()), e.Name()) {
				some = true
			}
		}
		if err != nil {
			return some
		}
	}
}

// delete deletes an entry of the trash, and tells whether it has deleted or moved up something.
func (t *trash) delete(ctx context.Context, dir int, name string) (some bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlink(dir, name, 0) == nil
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	// A directory that can be written only once it is no immutable or append-only one any more.
	clearFlags(fd)
	for {
		entries, err := d.ReadDir(256)
		for _, e := range entries {
			if ctx.Err() != nil {
				return some
			}
			if t.deleteIn(fd, e, dir) {
				some = true
			}
		}
		if err != nil { // io.EOF, or a damaged directory, which cannot be removed then
			return unlink(dir, name, unix.AT_REMOVEDIR) == nil || some
		}
	}
}

// deleteIn deletes an entry of a directory in the trash, or moves it up where it is a directory with entries.
func (t *trash) deleteIn(fd int, e os.DirEntry, up int) bool {
	if !e.IsDir() {
		return unlink(fd, e.Name(), 0) == nil
	}
	if unix.Unlinkat(fd, e.Name(), unix.AT_REMOVEDIR) == nil || unix.Renameat(fd, e.Name(), up, t.name()) == nil {
		return true
	}
	child, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	clearFlags(child)
	unix.Close(child)
	return unix.Renameat(fd, e.Name(), up, t.name()) == nil
}

// unlink deletes a name, also of a file that was made immutable.
func unlink(dir int, name string, flags int) error {
	err := unix.Unlinkat(dir, name, flags)
	if err != unix.EPERM {
		return err
	}
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err // only these have flags, and opening others may wait
	}
	fd, oerr := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return err
	}
	defer unix.Close(fd)
	clearFlags(fd)
	return unix.Unlinkat(dir, name, flags)
}

// clearFlags takes the attributes immutable and append-only from a file.
func clearFlags(fd int) {
	const kept = ^(unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND) // the values of FS_IMMUTABLE_FL and FS_APPEND_FL
	if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil && flags&^kept != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&kept)
	}
}
