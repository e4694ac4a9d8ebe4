package share

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SetAttr implements fuse.RawFileSystem.
func (d *dir) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return d.change(in.NodeId, func(n *node, fd int) error {
		st, err := statx(fd, "")
		if err != nil {
			return err
		}
		if err := d.setOwnerAndMode(in, fd, &st); err != nil {
			return err
		}
		if size, ok := in.GetSize(); ok {
			if err := d.truncate(in, n, fd, size); err != nil {
				return err
			}
		}
		if err := setTimes(in, fd); err != nil {
			return err
		}
		return d.attrOut(fd, out)
	})
}

func (d *dir) setOwnerAndMode(in *fuse.SetAttrIn, fd int, st *unix.Statx_t) error {
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	if !setUID {
		uid = keep
	}
	if !setGID {
		gid = keep
	}
	if setUID || setGID {
		if err := d.owners.set(fd, st, uid, gid); err != nil {
			return err
		}
	}
	mode, ok := in.GetMode()
	if !ok {
		return nil
	}
	kind := uint32(st.Mode) & unix.S_IFMT
	if kind == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(fd), safeMode(mode, kind == unix.S_IFDIR))
}

// truncate sets the size of a file, by the descriptor that the guest names where there is one: that one may be written
// even where the file's mode has changed since.
func (d *dir) truncate(in *fuse.SetAttrIn, n *node, fd int, size uint64) error {
	if n.is.kind != unix.S_IFREG {
		return unix.EINVAL
	}
	if fh, ok := in.GetFh(); ok {
		if h, err := d.handles.get(fh, n); err == nil && h.writable {
			return retry(func() error { return unix.Ftruncate(h.fd, int64(size)) })
		}
	}
	return retry(func() error { return unix.Truncate(procPath(fd), int64(size)) })
}

func setTimes(in *fuse.SetAttrIn, fd int) error {
	if in.Valid&(setAtime|setMtime) == 0 {
		return nil
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	switch {
	case in.Valid&setAtimeNow != 0:
		ts[0].Nsec = unix.UTIME_NOW
	case in.Valid&setAtime != 0:
		ts[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
	}
	switch {
	case in.Valid&setMtimeNow != 0:
		ts[1].Nsec = unix.UTIME_NOW
	case in.Valid&setMtime != 0:
		ts[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
	}
	return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
}

// make makes a file in a directory and tells the guest of it.
func (d *dir) make(h *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut, do func(at int) error) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	return d.change(h.NodeId, func(n *node, at int) error {
		if err := do(at); err != nil {
			return d.gone(err)
		}
		if err := d.finish(h, at, name, mode); err != nil {
			return err
		}
		return d.entry(n, at, name, out)
	})
}

// finish gives a new file its owner and, where this process's mask has taken from that, its mode.
func (d *dir) finish(h *fuse.InHeader, at int, name string, mode uint32) error {
	parent, err := statx(at, "")
	if err != nil {
		return err
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: below}
	fd, err := openat2(at, name, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st, err := statx(fd, "")
	if err != nil {
		return err
	}
	if err := d.owners.adopt(fd, &st, h.Owner, d.owners.guest(at, &parent), parent.Mode); err != nil {
		return err
	}
	kind := uint32(st.Mode) & unix.S_IFMT
	if kind == unix.S_IFLNK {
		return nil
	}
	mode = safeMode(mode, kind == unix.S_IFDIR)
	if kind == unix.S_IFDIR {
		mode |= uint32(st.Mode) & unix.S_ISGID // as the directory above has it
	}
	if mode == uint32(st.Mode)&0o7777 {
		return nil
	}
	return unix.Chmod(procPath(fd), mode)
}

// Mkdir implements fuse.RawFileSystem.
func (d *dir) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return d.make(&in.InHeader, name, in.Mode, out, func(at int) error { return unix.Mkdirat(at, name, in.Mode&0o7777) })
}

// Mknod implements fuse.RawFileSystem. A device of the host is nothing that a guest may make.
func (d *dir) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fuse.EPERM
	}
	return d.make(&in.InHeader, name, in.Mode, out, func(at int) error {
		return unix.Mknodat(at, name, kind|safeMode(in.Mode, false), 0)
	})
}

// Symlink implements fuse.RawFileSystem.
func (d *dir) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return d.make(h, name, 0, out, func(at int) error { return unix.Symlinkat(target, at, name) })
}

// Link implements fuse.RawFileSystem.
func (d *dir) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	old, err := d.nodes.get(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	return d.change(in.NodeId, func(n *node, at int) error {
		fd, err := d.open(old)
		if err != nil {
			return d.gone(err)
		}
		defer unix.Close(fd)
		if old.is.kind == unix.S_IFDIR {
			return unix.EPERM
		}
		if old.is.kind == unix.S_IFLNK { // the path of the descriptor would be followed
			return unix.EOPNOTSUPP
		}
		if err := unix.Linkat(unix.AT_FDCWD, procPath(fd), at, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		return d.entry(n, at, name, out)
	})
}

// Unlink implements fuse.RawFileSystem.
func (d *dir) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return d.remove(h, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (d *dir) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return d.remove(h, name, unix.AT_REMOVEDIR)
}

func (d *dir) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	return d.change(h.NodeId, func(n *node, at int) error {
		if err := unix.Unlinkat(at, name, flags); err != nil {
			return d.gone(err)
		}
		d.nodes.removed(n, name)
		return nil
	})
}

// Rename implements fuse.RawFileSystem.
func (d *dir) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	for _, s := range []string{name, newName} {
		if err := checkName(s); err != nil {
			return status(err)
		}
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	return d.change(in.NodeId, func(from *node, at int) error {
		to, err := d.nodes.get(in.Newdir)
		if err != nil {
			return err
		}
		newAt, err := d.open(to)
		if err != nil {
			return d.gone(err)
		}
		defer unix.Close(newAt)
		if err := unix.Renameat2(at, name, newAt, newName, uint(in.Flags)); err != nil {
			return d.gone(err)
		}
		d.nodes.renamed(link{from, name}, link{to, newName}, in.Flags&unix.RENAME_EXCHANGE != 0)
		return nil
	})
}

// visible tells whether a guest may read and write an extended attribute: the others mean something to the host.
func visible(attr string) bool { return strings.HasPrefix(attr, "user.") && attr != ownerAttr }

// GetXAttr implements fuse.RawFileSystem.
func (d *dir) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (size uint32, code fuse.Status) {
	if !visible(attr) {
		return 0, fuse.ENODATA
	}
	code = d.with(h.NodeId, func(n *node, fd int) error {
		if n.is.kind == unix.S_IFLNK {
			return unix.ENODATA
		}
		got, err := unix.Getxattr(procPath(fd), attr, dest)
		size = uint32(max(got, 0))
		return err
	})
	return size, code
}

// maxAttrs bounds the names of a file's attributes, as Linux has it.
const maxAttrs = 64 << 10

// ListXAttr implements fuse.RawFileSystem.
func (d *dir) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (size uint32, code fuse.Status) {
	code = d.with(h.NodeId, func(n *node, fd int) error {
		if n.is.kind == unix.S_IFLNK {
			return nil
		}
		all := make([]byte, maxAttrs)
		got, err := unix.Listxattr(procPath(fd), all)
		if err != nil {
			return err
		}
		var list []byte
		for name := range strings.SplitSeq(strings.TrimSuffix(string(all[:got]), "\x00"), "\x00") {
			if visible(name) {
				list = append(append(list, name...), 0)
			}
		}
		size = uint32(len(list))
		if len(dest) > 0 && copy(dest, list) < len(list) {
			return unix.ERANGE
		}
		return nil
	})
	return size, code
}

// SetXAttr implements fuse.RawFileSystem.
func (d *dir) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return d.setAttribute(in.NodeId, attr, func(path string) error { return unix.Setxattr(path, attr, data, int(in.Flags)) })
}

// RemoveXAttr implements fuse.RawFileSystem.
func (d *dir) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	return d.setAttribute(h.NodeId, attr, func(path string) error { return unix.Removexattr(path, attr) })
}

func (d *dir) setAttribute(id uint64, attr string, do func(path string) error) fuse.Status {
	if !visible(attr) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return d.change(id, func(n *node, fd int) error {
		if n.is.kind == unix.S_IFLNK {
			return unix.EPERM
		}
		return do(procPath(fd))
	})
}
