package share

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// value is an fs.FS as a file system of the protocol. All of it belongs to root, everybody may read it, and nothing can be
// written.
type value struct {
	fuse.RawFileSystem // refuses what is not there
	fsys               fs.FS

	mu     sync.Mutex
	byID   map[uint64]*name
	byPath map[string]*name
	open   map[uint64]*reader
	lists  map[uint64][]fuse.DirEntry
	next   uint64
	heat   heat
	ahead  aheadFunc // nil tells nobody
}

// name is a path that the guest knows.
type name struct {
	id, lookups uint64
	path        string // as fs.FS takes it

	told  time.Time // when the guest was told of it because it has asked
	asked asked     // of a directory: for what is in it
}

func newValue(fsys fs.FS) *value {
	root := &name{id: rootID, lookups: 1, path: "."}
	return &value{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), fsys: fsys, next: rootID + 1,
		byID: map[uint64]*name{rootID: root}, byPath: map[string]*name{".": root},
		open: make(map[uint64]*reader), lists: make(map[uint64][]fuse.DirEntry),
	}
}

// close closes what the guest has left open.
func (v *value) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.open {
		r.close()
	}
	clear(v.open)
}

func (v *value) String() string { return "arcbox" }

// get returns the path with a number.
func (v *value) get(id uint64) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.byID[id]; n != nil {
		return n.path, nil
	}
	return "", unix.ESTALE
}

// meet returns the number of a path, and counts that the guest is told of it.
func (v *value) meet(p string) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.byPath[p]
	if n == nil {
		if len(v.byID) >= maxNodes {
			return 0, unix.ENFILE
		}
		n = &name{id: v.next, path: p}
		v.next++
		v.byID[n.id], v.byPath[p] = n, n
	}
	n.lookups++
	return n.id, nil
}

// Forget implements fuse.RawFileSystem.
func (v *value) Forget(id, count uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.byID[id]
	if n == nil || id == rootID {
		return
	}
	if n.lookups -= min(count, n.lookups); n.lookups == 0 {
		delete(v.byID, id)
		delete(v.byPath, n.path)
	}
}

// valueError turns an error of a file system into one of the protocol.
func valueError(err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &errno):
		return fuse.Status(errno)
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return fuse.EACCES
	case errors.Is(err, fs.ErrInvalid):
		return fuse.EINVAL
	}
	return fuse.EIO
}

// attributes tells the guest of a file.
func attributes(id uint64, info fs.FileInfo, a *fuse.Attr) {
	mode := uint32(info.Mode().Perm())
	switch m := info.Mode(); {
	case m.IsDir():
		mode |= unix.S_IFDIR | 0o555
	case m&fs.ModeSymlink != 0:
		mode |= unix.S_IFLNK
	default:
		mode |= unix.S_IFREG | 0o444 // whatever else it is, it can be read or not
	}
	size := uint64(max(0, info.Size()))
	*a = fuse.Attr{Ino: id, Size: size, Blocks: (size + 511) / 512, Mode: mode, Nlink: 1, Blksize: 4096}
	if t := info.ModTime(); !t.IsZero() {
		a.SetTimes(&t, &t, &t)
	}
}

func (v *value) entry(p string, out *fuse.EntryOut) error {
	info, err := fs.Lstat(v.fsys, p)
	if err != nil {
		return err
	}
	id, err := v.meet(p)
	if err != nil {
		return err
	}
	attributes(id, info, &out.Attr)
	out.NodeId, out.Generation = id, 1
	out.SetEntryTimeout(validity)
	out.SetAttrTimeout(validity)
	return nil
}

// Lookup implements fuse.RawFileSystem.
func (v *value) Lookup(_ <-chan struct{}, h *fuse.InHeader, base string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(base); err != nil {
		return status(err)
	}
	dir, err := v.get(h.NodeId)
	if err != nil {
		return status(err)
	}
	p := path.Join(dir, base)
	if !fs.ValidPath(p) { // its text is no UTF-8
		return fuse.ENOENT
	}
	st := valueError(v.entry(p, out))
	if st == fuse.OK {
		v.told(out.NodeId)
	}
	return st
}

// onAhead sets who tells the guest to read a directory. It is called before the guest asks anything.
func (v *value) onAhead(fn aheadFunc) { v.ahead = fn }

// told notes that the guest has asked for one file, and tells it to read the directory where it does so often.
func (v *value) told(id uint64) {
	if dir, entries := v.hot(id); entries > 0 && v.ahead != nil {
		v.ahead(api.ReadAhead{Path: dir, Entries: entries})
	}
}

func (v *value) hot(id uint64) (dir string, entries int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.byID[id]
	if n == nil || id == rootID {
		return "", 0
	}
	parent := v.byPath[path.Dir(n.path)]
	if parent == nil {
		return "", 0
	}
	return parent.path, v.heat.ask(&n.told, &parent.asked, time.Now())
}

// GetAttr implements fuse.RawFileSystem.
func (v *value) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p, err := v.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	info, err := fs.Lstat(v.fsys, p)
	if err != nil {
		return valueError(err)
	}
	attributes(in.NodeId, info, &out.Attr)
	out.SetTimeout(validity)
	v.told(in.NodeId)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (v *value) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	p, err := v.get(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	text, err := fs.ReadLink(v.fsys, p)
	if len(text) >= unix.PathMax {
		return nil, fuse.Status(unix.ENAMETOOLONG)
	}
	return []byte(text), valueError(err)
}

// Access implements fuse.RawFileSystem.
func (v *value) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	_, err := v.get(in.NodeId)
	return status(err)
}

// StatFs implements fuse.RawFileSystem.
func (v *value) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: unix.NAME_MAX}
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem.
func (v *value) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status {
	return fuse.EROFS
}

// Open implements fuse.RawFileSystem.
func (v *value) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if writes(in.Flags) {
		return fuse.EROFS
	}
	p, err := v.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	r := &reader{fsys: v.fsys, path: p}
	if err := r.reopen(); err != nil {
		return valueError(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.open) >= maxHandles {
		r.close()
		return fuse.Status(unix.ENFILE)
	}
	v.next++
	v.open[v.next] = r
	out.Fh = v.next
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (v *value) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	v.mu.Lock()
	r := v.open[in.Fh]
	v.mu.Unlock()
	if r == nil {
		return nil, fuse.EBADF
	}
	n, err := r.readAt(buf, int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, valueError(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Release implements fuse.RawFileSystem.
func (v *value) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	v.mu.Lock()
	r := v.open[in.Fh]
	delete(v.open, in.Fh)
	v.mu.Unlock()
	if r != nil {
		r.close()
	}
}

// OpenDir implements fuse.RawFileSystem.
func (v *value) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p, err := v.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	entries, err := fs.ReadDir(v.fsys, p)
	if err != nil {
		return valueError(err)
	}
	list := []fuse.DirEntry{{Name: ".", Mode: unix.S_IFDIR, Off: 1}, {Name: "..", Mode: unix.S_IFDIR, Off: 2}}
	for _, e := range entries {
		mode := uint32(unix.S_IFREG)
		switch {
		case checkName(e.Name()) != nil:
			continue
		case e.IsDir():
			mode = unix.S_IFDIR
		case e.Type()&fs.ModeSymlink != 0:
			mode = unix.S_IFLNK
		}
		list = append(list, fuse.DirEntry{Name: e.Name(), Mode: mode, Off: uint64(len(list)) + 1})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.lists) >= maxHandles {
		return fuse.Status(unix.ENFILE)
	}
	if n := v.byID[in.NodeId]; n != nil {
		n.asked.size = len(list)
	}
	v.next++
	v.lists[v.next] = list
	out.Fh = v.next
	return fuse.OK
}

// ReadDir implements fuse.RawFileSystem.
func (v *value) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return v.list(in, func(_ string, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (v *value) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return v.list(in, func(dir string, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Off > 2 && v.entry(path.Join(dir, e.Name), entry) != nil {
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

func (v *value) list(in *fuse.ReadIn, add func(dir string, e fuse.DirEntry) bool) fuse.Status {
	dir, err := v.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	v.mu.Lock()
	list, ok := v.lists[in.Fh]
	v.mu.Unlock()
	if !ok {
		return fuse.EBADF
	}
	for i := in.Offset; i < uint64(len(list)) && add(dir, list[i]); i++ {
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (v *value) ReleaseDir(in *fuse.ReleaseIn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.lists, in.Fh)
}

// Flush implements fuse.RawFileSystem.
func (v *value) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// reader reads a file of an fs.FS at any offset, also one that can only be read from its beginning to its end.
type reader struct {
	fsys fs.FS
	path string

	mu     sync.Mutex
	f      fs.File
	at     int64 // where f is, unless it can be read anywhere
	closed bool
}

// reopen opens the file anew. The caller holds mu, or is the only one who knows r.
func (r *reader) reopen() error {
	f, err := r.fsys.Open(r.path)
	if err != nil {
		return err
	}
	if r.f != nil {
		r.f.Close()
	}
	r.f, r.at = f, 0
	return nil
}

func (r *reader) readAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, fs.ErrClosed
	}
	if f, ok := r.f.(io.ReaderAt); ok {
		return f.ReadAt(p, off)
	}
	if err := r.seek(off); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(r.f, p)
	r.at += int64(n)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

// seek moves to an offset, by reading on or from the beginning where there is no other way. The caller holds mu.
func (r *reader) seek(off int64) error {
	if off == r.at {
		return nil
	}
	if s, ok := r.f.(io.Seeker); ok {
		at, err := s.Seek(off, io.SeekStart)
		r.at = at
		return err
	}
	if off < r.at {
		if err := r.reopen(); err != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, r.f, off-r.at)
	r.at += n
	return err
}

func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.f.Close()
	}
}
