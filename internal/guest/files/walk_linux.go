package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxNames bounds the bytes of names that a walk holds at once.
const maxNames = 64 << 20

// errSkip is returned by a visit that does not want the contents of a directory.
var errSkip = errors.New("skip the directory")

// entry is a file that a walk has come to. It is valid during the visit only.
type entry struct {
	path string // from the walk's directory, without a slash before it
	fd   int    // O_PATH, of a link itself
	st   unix.Stat_t
}

func (e *entry) kind() uint32 { return e.st.Mode & unix.S_IFMT }

func (e *entry) isWhiteout() bool { return e.kind() == unix.S_IFCHR && e.st.Rdev == 0 }

// walker goes through a directory: each name before what is in it, names in order, links never followed. What vanishes
// meanwhile is passed over. It holds two descriptors at most, however deep the tree is.
type walker struct {
	ctx   context.Context
	dir   int // never left
	visit func(e *entry) error
	after func(dir string) error // when the contents of a directory were visited; may be nil
	held  int                    // bytes of names
}

// walk visits what is in a directory, "." for the one of the walker.
func (w *walker) walk(dir string) error {
	names, err := readNames(w.dir, dir, maxNames-w.held)
	if err != nil {
		return err
	}
	size := 0
	for _, n := range names {
		size += len(n) + nameCost
	}
	w.held += size
	defer func() { w.held -= size }()
	for _, name := range names {
		if err := w.step(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) step(name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	isDir, err := w.one(name)
	if err != nil || !isDir {
		return err
	}
	if err := w.walk(name); err != nil {
		return err
	}
	if w.after != nil {
		return w.after(name)
	}
	return nil
}

// one visits one file, and tells whether its contents are to be visited.
func (w *walker) one(name string) (bool, error) {
	e := entry{path: name}
	var err error
	e.fd, err = open(w.dir, name, unix.O_PATH|unix.O_NOFOLLOW, below)
	if changed(err) {
		return false, nil
	}
	if err != nil {
		return false, pathError("open", name, err)
	}
	defer unix.Close(e.fd)
	if err := unix.Fstat(e.fd, &e.st); err != nil {
		return false, pathError("stat", name, err)
	}
	switch err := w.visit(&e); {
	case err == errSkip:
		return false, nil
	case err != nil:
		return false, err
	}
	return e.kind() == unix.S_IFDIR && !pseudo(e.fd), nil
}

// pseudo tells whether a directory is the kernel's own: what is in it is no data.
func pseudo(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, mqueueMagic:
		return true
	}
	return false
}

const mqueueMagic = 0x19800202

// nameCost is what a name takes in memory besides its bytes.
const nameCost = 16

// readNames returns the names in a directory, sorted. One that is there no more is empty.
func readNames(root int, dir string, limit int) ([]string, error) {
	fd, err := open(root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, below)
	if changed(err) {
		return nil, nil
	}
	if err != nil {
		return nil, pathError("open", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var names []string
	for {
		some, err := f.Readdirnames(1024)
		for _, n := range some {
			limit -= len(n) + nameCost
		}
		if names = append(names, some...); limit < 0 {
			return nil, fmt.Errorf("read directory %.300q in the container: %w: it has too many names: copy parts of it", dir, errs.ErrUnavailable)
		}
		if err == io.EOF || err != nil && changed(errors.Unwrap(err)) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, pathError("read directory", dir, err)
		}
	}
}
