package share

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is a file or a directory that a guest has open.
type handle struct {
	n        *node
	fd       int
	writable bool
	use      sync.RWMutex // held for writing while the descriptor is closed
	closed   bool

	// Of a directory.
	mu      sync.Mutex
	entries []fuse.DirEntry
	ended   bool // all entries were read
}

// handles are what a guest has open, by number.
type handles struct {
	mu   sync.Mutex
	all  map[uint64]*handle
	most int // that there may be
	next uint64
}

func (t *handles) add(h *handle) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= t.most {
		return 0, unix.ENFILE
	}
	if t.all == nil {
		t.all = make(map[uint64]*handle)
	}
	t.next++
	t.all[t.next] = h
	return t.next, nil
}

// get returns a handle of a node; nil is of any.
func (t *handles) get(fh uint64, n *node) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.all[fh]
	if h == nil || n != nil && h.n != n {
		return nil, unix.EBADF
	}
	return h, nil
}

func (t *handles) take(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.all[fh]
	delete(t.all, fh)
	return h
}

// do calls fn with a handle's descriptor, which is not closed meanwhile.
func (h *handle) do(fn func(fd int) error) error {
	h.use.RLock()
	defer h.use.RUnlock()
	if h.closed {
		return unix.EBADF
	}
	return retry(func() error { return fn(h.fd) })
}

func (h *handle) close() {
	h.use.Lock()
	defer h.use.Unlock()
	if !h.closed {
		h.closed = true
		unix.Close(h.fd)
	}
}

func (t *handles) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.all {
		h.close()
	}
	clear(t.all)
}

// hostFlags returns how a file of the host is opened. Opening does not wait, and gives no terminal.
func hostFlags(guest uint32) int {
	keep := unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC
	return int(guest)&keep | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
}

func writes(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// Open implements fuse.RawFileSystem.
func (d *dir) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if d.readOnly && (writes(in.Flags) || in.Flags&unix.O_TRUNC != 0) {
		return fuse.EROFS
	}
	return d.with(in.NodeId, func(n *node, at int) error {
		if n.is.kind != unix.S_IFREG { // the guest's kernel has pipes, sockets and devices of its own
			return unix.EPERM
		}
		fd, err := unix.Open(procPath(at), hostFlags(in.Flags), 0)
		if err != nil {
			return err
		}
		out.Fh, err = d.hold(n, fd, writes(in.Flags))
		return err
	})
}

// hold makes a handle of a descriptor, which it closes where that fails.
func (d *dir) hold(n *node, fd int, writable bool) (uint64, error) {
	fh, err := d.handles.add(&handle{n: n, fd: fd, writable: writable})
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	d.nodes.opened(n, fd)
	return fh, nil
}

// Create implements fuse.RawFileSystem.
func (d *dir) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	return d.change(in.NodeId, func(parent *node, at int) error {
		fd, made, err := d.create(in, at, name)
		if err != nil {
			return d.gone(err)
		}
		st, err := statx(fd, "")
		if err == nil && uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
			err = unix.EPERM
		}
		if err == nil && made {
			err = d.finish(&in.InHeader, at, name, in.Mode)
		}
		if err == nil {
			err = d.entry(parent, at, name, &out.EntryOut)
		}
		var n *node
		if err == nil {
			n, err = d.nodes.get(out.NodeId)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		out.Fh, err = d.hold(n, fd, writes(in.Flags))
		return err
	})
}

// create opens a file that it makes where it does not exist, and tells whether it has made it.
func (d *dir) create(in *fuse.CreateIn, at int, name string) (fd int, made bool, err error) {
	how := unix.OpenHow{
		Flags: uint64(hostFlags(in.Flags)|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW) &^ unix.O_TRUNC, Resolve: below,
		Mode: uint64(safeMode(in.Mode, false)),
	}
	if fd, err = openat2(at, name, &how); err != unix.EEXIST || in.Flags&unix.O_EXCL != 0 {
		return fd, err == nil, err
	}
	// What is there may be a pipe: it is opened without waiting, and refused later.
	how.Flags, how.Mode = uint64(hostFlags(in.Flags)|unix.O_NOFOLLOW)&^unix.O_TRUNC, 0
	if fd, err = openat2(at, name, &how); err != nil {
		return -1, false, err
	}
	if in.Flags&unix.O_TRUNC != 0 {
		if err = unix.Ftruncate(fd, 0); err != nil {
			unix.Close(fd)
			return -1, false, err
		}
	}
	return fd, false, nil
}

// file calls fn with the descriptor of a file that the guest has open.
func (d *dir) file(id, fh uint64, write bool, fn func(fd int) error) fuse.Status {
	n, err := d.nodes.get(id)
	if err != nil {
		return status(err)
	}
	h, err := d.handles.get(fh, n)
	if err == nil && write && !h.writable {
		err = unix.EBADF
	}
	if err != nil {
		return status(err)
	}
	return status(h.do(fn))
}

// Read implements fuse.RawFileSystem.
func (d *dir) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (res fuse.ReadResult, code fuse.Status) {
	code = d.file(in.NodeId, in.Fh, false, func(fd int) error {
		n := 0
		for n < len(buf) {
			m, err := unix.Pread(fd, buf[n:], int64(in.Offset)+int64(n))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if m == 0 {
				break
			}
			n += m
		}
		res = fuse.ReadResultData(buf[:n])
		return nil
	})
	return res, code
}

// Write implements fuse.RawFileSystem.
func (d *dir) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, code fuse.Status) {
	code = d.file(in.NodeId, in.Fh, true, func(fd int) error {
		for int(written) < len(data) {
			m, err := unix.Pwrite(fd, data[written:], int64(in.Offset)+int64(written))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				if written > 0 {
					return nil
				}
				return err
			}
			written += uint32(m)
		}
		return nil
	})
	return written, code
}

// Lseek implements fuse.RawFileSystem. The guest's kernel asks for data and holes only.
func (d *dir) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	return d.file(in.NodeId, in.Fh, false, func(fd int) error {
		off, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(off)
		return err
	})
}

// Fallocate implements fuse.RawFileSystem.
func (d *dir) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return d.file(in.NodeId, in.Fh, true, func(fd int) error {
		return unix.Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// CopyFileRange implements fuse.RawFileSystem.
func (d *dir) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (written uint32, code fuse.Status) {
	code = d.file(in.NodeId, in.FhIn, false, func(from int) error {
		st := d.file(in.NodeIdOut, in.FhOut, true, func(to int) error {
			offIn, offOut := int64(in.OffIn), int64(in.OffOut)
			n, err := unix.CopyFileRange(from, &offIn, to, &offOut, int(min(in.Len, 1<<30)), 0)
			written = uint32(max(n, 0))
			return err
		})
		if st != fuse.OK {
			return unix.Errno(st)
		}
		return nil
	})
	return written, code
}

// Flush implements fuse.RawFileSystem. What was written is with the host's kernel already. A process that closes a file
// gives up its locks on it.
func (d *dir) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if n, err := d.nodes.get(in.NodeId); err == nil {
		d.locks.drop(locker{n, in.LockOwner, false})
	}
	return d.file(in.NodeId, in.Fh, false, func(int) error { return nil })
}

// Fsync implements fuse.RawFileSystem.
func (d *dir) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return d.file(in.NodeId, in.Fh, false, func(fd int) error {
		if in.FsyncFlags&1 != 0 {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	})
}

// FsyncDir implements fuse.RawFileSystem.
func (d *dir) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return d.file(in.NodeId, in.Fh, false, unix.Fsync)
}

// Release implements fuse.RawFileSystem.
func (d *dir) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	d.locks.release(in.Fh)
	d.release(in.Fh)
}

// ReleaseDir implements fuse.RawFileSystem.
func (d *dir) ReleaseDir(in *fuse.ReleaseIn) { d.release(in.Fh) }

func (d *dir) release(fh uint64) {
	if h := d.handles.take(fh); h != nil {
		if h.n.is.kind == unix.S_IFDIR {
			d.nodes.reading(h.n, -1, 0)
		}
		d.nodes.closed(h.n, h.fd)
		h.close()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.unload(&d.listed)
	}
}

// OpenDir implements fuse.RawFileSystem.
func (d *dir) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return d.with(in.NodeId, func(n *node, at int) error {
		fd, err := unix.Open(procPath(at), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if out.Fh, err = d.hold(n, fd, false); err == nil {
			d.nodes.reading(n, 1, 0)
		}
		return err
	})
}

// ReadDir implements fuse.RawFileSystem.
func (d *dir) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return d.list(in, func(_ *node, _ int, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (d *dir) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return d.list(in, func(n *node, fd int, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." && d.entry(n, fd, e.Name, entry) != nil {
			*entry = fuse.EntryOut{} // it has gone meanwhile: the guest asks for it if it must know
		}
		return true
	})
}

// list gives the entries of a directory from an offset on to add, until that has enough.
func (d *dir) list(in *fuse.ReadIn, add func(n *node, fd int, e fuse.DirEntry) bool) fuse.Status {
	h, err := d.handles.get(in.Fh, nil)
	if err != nil || h.n.id != in.NodeId || h.n.is.kind != unix.S_IFDIR {
		return fuse.EBADF
	}
	return status(h.do(func(fd int) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if in.Offset == 0 {
			h.unload(&d.listed)
			if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
				return err
			}
		}
		for i := in.Offset; ; i++ {
			for i >= uint64(len(h.entries)) {
				if h.ended {
					d.nodes.reading(h.n, 0, len(h.entries))
					return nil
				}
				if err := h.more(fd, &d.listed); err != nil {
					return err
				}
			}
			if !add(h.n, fd, h.entries[i]) {
				return nil
			}
		}
	}))
}

// unload forgets the entries of a directory. The caller holds mu.
func (h *handle) unload(all *budget) {
	all.give(len(h.entries))
	h.entries, h.ended = nil, false
}

// more reads more entries of a directory. The caller holds mu.
func (h *handle) more(fd int, all *budget) error {
	if len(h.entries) >= maxEntries {
		return unix.EOVERFLOW
	}
	var buf [32 << 10]byte
	const most = len(buf) / 24 // the shortest entry
	if !all.take(most) {
		return unix.ENFILE
	}
	before := len(h.entries)
	defer func() { all.give(most - (len(h.entries) - before)) }()
	n, err := unix.Getdents(fd, buf[:])
	if err != nil {
		return err
	}
	h.ended = n <= 0
	for b := buf[:max(n, 0)]; len(b) > 0; {
		e, size := parseDirent(b)
		if size == 0 {
			return unix.EIO
		}
		b = b[size:]
		e.Off = uint64(len(h.entries)) + 1
		h.entries = append(h.entries, e)
	}
	return nil
}
