package share

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// dir is a directory, or a single file, of the host as a file system of the protocol. It is confined to what is below its
// root: a path is resolved by the host's kernel from the root, below it, and never through a link. Links are texts that
// the guest resolves.
type dir struct {
	fuse.RawFileSystem     // refuses what is not there
	root               int // O_PATH
	rootDev            uint64
	readOnly           bool
	owners             owners
	nodes              *nodes
	handles            handles
	locks              locks
	ahead              aheadFunc // nil tells nobody
	listed             budget
	once               sync.Once
}

// openDir opens a directory or a regular file to be shared. file tells which it is.
func openDir(path string, readOnly bool) (d *dir, file bool, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	st, err := statx(fd, "")
	if err != nil {
		unix.Close(fd)
		return nil, false, err
	}
	is := identify(&st)
	d = &dir{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), root: fd, rootDev: is.dev, readOnly: readOnly, owners: newOwners(), nodes: newNodes(is), handles: handles{most: handleLimit()},
	}
	return d, is.kind != unix.S_IFDIR, nil
}

// close closes what the guest has left open.
func (d *dir) close() {
	d.once.Do(func() {
		d.locks.close()
		d.handles.close()
		unix.Close(d.root)
	})
}

// end makes those return who wait for a lock: nobody asks for one any more.
func (d *dir) end() { d.locks.close() }

// statx tells of a file in a directory, or of the one of the descriptor where name is "". Links are not followed.
func statx(at int, name string) (st unix.Statx_t, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_SYNC_AS_STAT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err = retry(func() error { return unix.Statx(at, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st) })
	return st, err
}

// retry repeats a call that a signal has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func identify(st *unix.Statx_t) identity {
	is := identity{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, kind: uint32(st.Mode) & unix.S_IFMT}
	if st.Mask&unix.STATX_BTIME != 0 {
		is.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return is
}

// below is how a path is resolved.
const below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// open returns a descriptor that names the file of a node. Where the host has put another file in its place it is ESTALE.
func (d *dir) open(n *node) (int, error) {
	if n.id == rootID {
		return unix.FcntlInt(uintptr(d.root), unix.F_DUPFD_CLOEXEC, 3)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: below}
	err := error(unix.ENOENT)
	for _, p := range d.nodes.paths(n) {
		fd, oerr := openat2(d.root, p, &how)
		if oerr != nil {
			err = oerr
			continue
		}
		st, serr := statx(fd, "")
		if serr == nil && identify(&st) == n.is {
			return fd, nil
		}
		unix.Close(fd)
		err = unix.ESTALE
	}
	if fd, berr := d.nodes.borrow(n); berr == nil { // it is open, and has no name any more
		return fd, nil
	}
	return -1, err
}

func openat2(at int, path string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(at, path, how)
		if err != unix.EINTR && err != unix.EAGAIN { // somebody has renamed something meanwhile
			return fd, err
		}
	}
}

// with calls fn with a descriptor that names the file of a node.
func (d *dir) with(id uint64, fn func(n *node, fd int) error) fuse.Status {
	n, err := d.nodes.get(id)
	if err != nil {
		return status(err)
	}
	fd, err := d.open(n)
	if err != nil {
		return status(d.gone(err))
	}
	defer unix.Close(fd)
	return status(fn(n, fd))
}

// change is with for what writes.
func (d *dir) change(id uint64, fn func(n *node, fd int) error) fuse.Status {
	if d.readOnly {
		return fuse.EROFS
	}
	return d.with(id, fn)
}

// gone turns the error of a file that is not found into EIO where the whole directory was removed.
func (d *dir) gone(err error) error {
	if err != unix.ENOENT {
		return err
	}
	if st, serr := statx(d.root, ""); serr != nil || st.Nlink == 0 {
		return unix.EIO
	}
	return err
}

// status is the gate of errors.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	switch e := err.(type) {
	case syscall.Errno:
		return fuse.Status(e)
	case errno:
		return fuse.Status(e)
	}
	return fuse.EIO
}

// checkName refuses what is no name in a directory.
func checkName(name string) error {
	if code := nameError(name); code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// attr tells the guest of a file.
func (d *dir) attr(fd int, st *unix.Statx_t, a *fuse.Attr) {
	*a = fuse.Attr{
		Ino: st.Ino, Size: st.Size, Blocks: st.Blocks, Mode: uint32(st.Mode), Nlink: st.Nlink, Blksize: st.Blksize,
		Atime: uint64(st.Atime.Sec), Mtime: uint64(st.Mtime.Sec), Ctime: uint64(st.Ctime.Sec),
		Atimensec: st.Atime.Nsec, Mtimensec: st.Mtime.Nsec, Ctimensec: st.Ctime.Nsec,
		Owner: d.owners.guest(fd, st),
	}
	if dev := unix.Mkdev(st.Dev_major, st.Dev_minor); dev != d.rootDev {
		a.Ino ^= dev << 40 // another file system that is mounted below
	}
}

// entry tells the guest of a file that was found, or has been made, under a name.
func (d *dir) entry(parent *node, at int, name string, out *fuse.EntryOut) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: below}
	fd := -1
	if !d.owners.real { // the owner is in an attribute
		var err error
		if fd, err = openat2(at, name, &how); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	st, err := d.look(at, fd, name)
	if err != nil {
		return err
	}
	n, err := d.nodes.meet(parent, name, identify(&st))
	if err != nil {
		return err
	}
	d.attr(fd, &st, &out.Attr)
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(validity)
	out.SetAttrTimeout(validity)
	return nil
}

func (d *dir) look(at, fd int, name string) (unix.Statx_t, error) {
	if fd >= 0 {
		return statx(fd, "")
	}
	return statx(at, name)
}

// Lookup implements fuse.RawFileSystem.
func (d *dir) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	st := d.with(h.NodeId, func(n *node, fd int) error { return d.gone(d.entry(n, fd, name, out)) })
	if st == fuse.OK {
		d.told(out.NodeId)
	}
	if st == fuse.ENOENT { // believed for as long as a name that is there
		*out = fuse.EntryOut{}
		out.SetEntryTimeout(validity)
		return fuse.OK
	}
	return st
}

// Forget implements fuse.RawFileSystem.
func (d *dir) Forget(id, count uint64) { d.nodes.forget(id, count) }

// GetAttr implements fuse.RawFileSystem.
func (d *dir) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	st := d.with(in.NodeId, func(_ *node, fd int) error { return d.attrOut(fd, out) })
	if st == fuse.OK {
		d.told(in.NodeId)
	}
	return st
}

// told notes that the guest has asked for one file, and tells it to read the directory where it does so often.
func (d *dir) told(id uint64) {
	if d.ahead == nil {
		return
	}
	if p, n := d.nodes.told(id, time.Now()); n > 0 {
		d.ahead(api.ReadAhead{Path: p, Entries: n})
	}
}

// onAhead sets who tells the guest to read a directory. It is called before the guest asks anything.
func (d *dir) onAhead(fn aheadFunc) { d.ahead = fn }

func (d *dir) attrOut(fd int, out *fuse.AttrOut) error {
	st, err := statx(fd, "")
	if err != nil {
		return err
	}
	d.attr(fd, &st, &out.Attr)
	out.SetTimeout(validity)
	return nil
}

// Readlink implements fuse.RawFileSystem.
func (d *dir) Readlink(_ <-chan struct{}, h *fuse.InHeader) (out []byte, code fuse.Status) {
	code = d.with(h.NodeId, func(_ *node, fd int) error {
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", b)
		if err == nil {
			out = b[:n]
		}
		return err
	})
	return out, code
}

// Access implements fuse.RawFileSystem. The guest's kernel looks at owners and modes itself.
func (d *dir) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return d.with(in.NodeId, func(*node, int) error { return nil })
}

// StatFs implements fuse.RawFileSystem.
func (d *dir) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(d.root, &st) }); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: uint32(st.Namelen),
	}
	return fuse.OK
}

// String implements fuse.RawFileSystem.
func (d *dir) String() string { return "arcbox" }
