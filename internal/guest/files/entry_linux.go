package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// file is what an entry of an archive asks for.
type file struct {
	kind     byte // as in tar
	mode     uint32
	uid, gid int
	modTime  time.Time
	size     int64
	target   string // of a symbolic link
	link     string // of a hard link, cleaned
	dev      uint64
	xattrs   map[string]string
}

func newFile(h *tar.Header, o Options) (*file, error) {
	f := &file{kind: h.Typeflag, mode: uint32(h.Mode & 0o7777), modTime: h.ModTime, size: h.Size, target: h.Linkname}
	bad := func(what string) (*file, error) {
		return nil, fmt.Errorf("unpack %.300q: %w: %s", h.Name, errs.ErrInvalid, what)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		f.kind = tar.TypeReg
	case tar.TypeDir, tar.TypeLink, tar.TypeFifo:
	case tar.TypeSymlink:
		if f.target == "" || len(f.target) >= unix.PathMax || strings.IndexByte(f.target, 0) >= 0 {
			return bad("a link must have a target that a file system takes")
		}
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return bad("a device number is out of range")
		}
		if f.dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)); f.dev == 0 && h.Typeflag == tar.TypeChar {
			return bad("device 0:0 means a deletion to the container's file system")
		}
	default:
		return bad(fmt.Sprintf("an entry of type %q", h.Typeflag))
	}
	if o.KeepOwner {
		if f.uid, f.gid = h.Uid, h.Gid; h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
			return bad("its owner is no user number")
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok && portable(name) {
			if f.xattrs == nil {
				f.xattrs = make(map[string]string)
			}
			f.xattrs[name] = v
		}
	}
	return f, nil
}

// put makes a file in the directory at. Errors of the kernel are returned as they are.
func (t *Target) put(tr *tar.Reader, at int, base, name string, f *file, o Options) error {
	for range maxTries {
		kept, err := t.clear(at, base, name, f, o)
		if err != nil {
			return err
		}
		if kept {
			return t.keep(at, base, name, f)
		}
		switch err = t.make(tr, at, base, name, f); {
		case err == unix.EEXIST: // the container was quicker
			continue
		case err != nil || f.kind == tar.TypeLink || f.kind == tar.TypeReg:
			return err
		}
		return t.keep(at, base, name, f)
	}
	return unix.EAGAIN
}

// clear makes room for a file. It tells whether the directory that the archive asks for is there.
func (t *Target) clear(at int, base, name string, f *file, o Options) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && f.kind == tar.TypeDir {
		return true, nil
	}
	if o.NoOverwrite && isDir != (f.kind == tar.TypeDir) {
		return false, &targetError{fmt.Errorf("unpack %.300q: %w: a directory and something else cannot replace one another: remove it first", name, errs.ErrConflict)}
	}
	t.forgetBelow(name)
	return false, remove(at, base)
}

// forgetBelow drops what is remembered of a directory that goes.
func (t *Target) forgetBelow(name string) {
	t.times = slices.DeleteFunc(t.times, func(d dirTime) bool {
		gone := d.path == name || strings.HasPrefix(d.path, name+"/")
		if gone {
			t.held -= len(d.path)
		}
		return gone
	})
}

// make makes a file, which for a regular file and a hard link is all.
func (t *Target) make(tr *tar.Reader, at int, base, name string, f *file) error {
	switch f.kind {
	case tar.TypeReg:
		return t.regular(tr, at, base, f)
	case tar.TypeLink:
		return t.hardLink(at, base, name, f)
	case tar.TypeDir:
		return unix.Mkdirat(at, base, 0o700)
	case tar.TypeSymlink:
		return unix.Symlinkat(f.target, at, base)
	case tar.TypeFifo:
		return unix.Mknodat(at, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeBlock:
		return unix.Mknodat(at, base, unix.S_IFBLK|0o600, int(f.dev))
	default:
		return unix.Mknodat(at, base, unix.S_IFCHR|0o600, int(f.dev))
	}
}

// keep gives what is there its attributes. It fails where the container has put something of another kind there.
func (t *Target) keep(at int, base, name string, f *file) error {
	fd, err := openName(at, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	want := map[byte]uint32{
		tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK, tar.TypeFifo: unix.S_IFIFO,
		tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK,
	}[f.kind]
	if st.Mode&unix.S_IFMT != want {
		return unix.EAGAIN
	}
	if f.kind == tar.TypeDir {
		if t.held += len(name); t.held > maxNames {
			return &targetError{fmt.Errorf("unpack %.300q: %w: too many directories: copy parts of it", name, errs.ErrInvalid)}
		}
		t.times = append(t.times, dirTime{name, f.modTime})
	}
	return f.apply(fd)
}

// hardLink gives a file of the target another name.
func (t *Target) hardLink(at int, base, name string, f *file) error {
	dir, old := path.Split(f.link)
	from, err := t.openDir(strings.TrimSuffix(dir, "/"))
	if err == nil {
		defer unix.Close(from)
		err = unix.Linkat(from, old, at, base, 0)
	}
	if err != nil && err != unix.EEXIST && !errors.Is(err, unix.ENOSPC) {
		return &targetError{fmt.Errorf("unpack %.300q: %w hard link to %.300q: %w", name, errs.ErrInvalid, f.link, err)}
	}
	return err
}

// regular writes a file whole, or not at all.
func (t *Target) regular(tr *tar.Reader, at int, base string, f *file) error {
	fd, err := open(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = t.content(tr, fd, f.size); err == nil {
		err = f.apply(fd)
	}
	if err != nil {
		_ = unix.Unlinkat(at, base, 0)
	}
	return err
}

// content writes the content of a file, with holes for zeros.
func (t *Target) content(r io.Reader, fd int, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		b := t.buf[:min(size-off, bufSize)]
		n, err := io.ReadFull(r, b)
		if err != nil {
			return err
		}
		for len(b) > 0 && !zero(b) {
			k, err := unix.Pwrite(fd, b, off)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			off, n, b = off+int64(k), n-k, b[k:]
		}
		off += int64(n)
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// apply sets owner, mode, attributes and time of an open file, in the order in which none undoes another.
func (f *file) apply(fd int) error {
	if err := unix.Fchownat(fd, "", f.uid, f.gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if f.kind != tar.TypeSymlink {
		if err := unix.Chmod(procPath(fd), f.mode); err != nil {
			return err
		}
	}
	if f.kind == tar.TypeReg || f.kind == tar.TypeDir {
		for name, value := range f.xattrs {
			err := unix.Setxattr(procPath(fd), name, []byte(value), 0)
			if err != nil && err != unix.ENOTSUP { // a file system in memory has no attributes for users
				return err
			}
		}
	}
	return setTime(fd, f.modTime)
}

func setTime(fd int, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	now := unix.Timespec{Nsec: unix.UTIME_OMIT}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{now, ts}, unix.AT_EMPTY_PATH)
}
