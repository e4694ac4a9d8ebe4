//go:build linux || darwin

package share

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostStat is what the host says of a file. Owners are those of the host.
type hostStat struct {
	attr
	is identity
}

// hostFS is what the host says of a file system.
type hostFS struct {
	blocks, free, avail, files, filesFree uint64
	block, fragment                       uint32
}

// target is a file whose attributes are changed, by name or by a handle.
type target interface {
	status() hostStat // when it was found
	stat() (hostStat, error)
	chmod(mode fs.FileMode) error
	chown(uid, gid int) error
	chtimes(atime, mtime time.Time) error // a zero time is no change
	truncate(size int64) error
	with(fn func(fd int) error) error // the file is open meanwhile
}

// namedFile is a target with a name in a directory.
type namedFile struct {
	t    *tree
	r    *os.Root
	name string
	st   hostStat
}

var _ target = (*namedFile)(nil)

func (f *namedFile) status() hostStat             { return f.st }
func (f *namedFile) stat() (hostStat, error)      { return f.t.stat(f.r, f.name) }
func (f *namedFile) chmod(mode fs.FileMode) error { return f.r.Chmod(f.name, mode) }
func (f *namedFile) chown(uid, gid int) error     { return f.r.Lchown(f.name, uid, gid) }
func (f *namedFile) chtimes(a, m time.Time) error { return f.r.Chtimes(f.name, a, m) }

func (f *namedFile) truncate(size int64) error {
	file, err := f.open(os.O_WRONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Truncate(size)
}

func (f *namedFile) with(fn func(fd int) error) error {
	file, err := f.open(os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	return control(file, fn)
}

// open opens the file, and no other one that has got its name meanwhile. It does not wait, and gets no terminal.
func (f *namedFile) open(flags int) (*os.File, error) {
	file, err := f.r.OpenFile(f.name, flags|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	var host syscall.Errno
	if err != nil && (!errors.As(err, &host) || host == syscall.ELOOP) { // it has become a link
		return nil, eSTALE
	}
	if err != nil {
		return nil, err
	}
	if st, err := statFile(file); err != nil || st.is != f.st.is {
		file.Close()
		return nil, eSTALE
	}
	return file, nil
}

func statFile(f *os.File) (hostStat, error) {
	info, err := f.Stat()
	if err != nil {
		return hostStat{}, err
	}
	return statOf(info)
}

// heldFile is a target that a guest has open.
type heldFile struct {
	t  *tree
	o  *opened
	st hostStat
}

var _ target = (*heldFile)(nil)

func (f *heldFile) status() hostStat        { return f.st }
func (f *heldFile) stat() (hostStat, error) { return f.o.stat() }
func (f *heldFile) chmod(mode fs.FileMode) error {
	return f.o.with(func(f *os.File) error { return f.Chmod(mode) })
}
func (f *heldFile) chown(uid, gid int) error {
	return f.o.with(func(f *os.File) error { return f.Chown(uid, gid) })
}
func (f *heldFile) truncate(size int64) error {
	return f.o.with(func(f *os.File) error { return f.Truncate(size) })
}

func (f *heldFile) with(fn func(fd int) error) error {
	return f.o.with(func(f *os.File) error { return control(f, fn) })
}

func (f *heldFile) chtimes(atime, mtime time.Time) error {
	if atime.IsZero() {
		atime = f.st.atime
	}
	if mtime.IsZero() {
		mtime = f.st.mtime
	}
	return f.with(func(fd int) error {
		return unix.Futimes(fd, []unix.Timeval{unix.NsecToTimeval(atime.UnixNano()), unix.NsecToTimeval(mtime.UnixNano())})
	})
}

// owner returns who owns a file in the guest, as owners has it on Linux.
func (t *tree) owner(f target) owner {
	st := f.status()
	if t.real {
		return owner{st.uid, st.gid}
	}
	o := owner{nobody, nobody}
	if st.uid == t.uid {
		o.uid = 0
		if chosen, ok := readChosen(f); ok {
			return chosen
		}
	}
	if st.gid == t.gid {
		o.gid = 0
	}
	return o
}

// readChosen reads the owner that the guest has given to a file.
func readChosen(f target) (o owner, ok bool) {
	if kind := f.status().is.kind; kind != typeFile && kind != typeDir {
		return owner{}, false
	}
	err := f.with(func(fd int) error {
		var b [32]byte
		n, err := unix.Fgetxattr(fd, ownerAttr, b[:])
		if err == nil {
			o, ok = parseOwner(b[:n])
		}
		return err
	})
	return o, ok && err == nil
}

// setOwner changes the owner of a file; keep leaves one of the two. A file that cannot have an owner of the guest's choice
// keeps the one it has, which is no error.
func (t *tree) setOwner(f target, want owner) error {
	if t.real {
		return f.chown(int(int32(want.uid)), int(int32(want.gid)))
	}
	now := t.owner(f)
	if want.uid == keep {
		want.uid = now.uid
	}
	if want.gid == keep {
		want.gid = now.gid
	}
	if kind := f.status().is.kind; want == now || kind != typeFile && kind != typeDir {
		return nil
	}
	return f.with(func(fd int) error { return unix.Fsetxattr(fd, ownerAttr, want.append(), 0) })
}

// fileMode returns a mode of the protocol as os has it.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, as := range map[uint32]fs.FileMode{setUser: fs.ModeSetuid, setGroup: fs.ModeSetgid, sticky: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= as
		}
	}
	return m
}
