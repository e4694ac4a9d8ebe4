package share

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// value is an fs.FS as a file system of the protocol. All of it belongs to root, everybody may read it, and nothing can be
// written. It parses the few messages that matter itself: go-fuse has the structures of the system that it is built for, and
// the guest's are those of Linux.
type value struct {
	fsys  fs.FS
	ahead aheadFunc // nil tells nobody

	mu     sync.Mutex
	byID   map[uint64]*name
	byPath map[string]*name
	open   map[uint64]*reader
	lists  map[uint64][]listEntry
	next   uint64
	heat   heat
	listed budget
}

var _ backend = (*value)(nil)

// name is a path that the guest knows.
type name struct {
	id, lookups uint64
	path        string // as fs.FS takes it

	told  time.Time // when the guest was told of it because it has asked
	asked asked     // of a directory: for what is in it
}

// listEntry is a name in a directory, with the type of the file.
type listEntry struct {
	name string
	mode uint32
}

func newValue(fsys fs.FS) *value {
	root := &name{id: rootID, lookups: 1, path: "."}
	return &value{
		fsys: fsys, next: rootID + 1,
		byID: map[uint64]*name{rootID: root}, byPath: map[string]*name{".": root},
		open: make(map[uint64]*reader), lists: make(map[uint64][]listEntry),
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

func (v *value) onAhead(fn aheadFunc) { v.ahead = fn }

// end does nothing: nobody waits.
func (v *value) end() {}

// handle implements backend.
func (v *value) handle(msg, out []byte) (int, bool) {
	if forgetting(msg, v.forget) || binary.LittleEndian.Uint32(msg[4:]) == opInterrupt { // nobody waits
		return 0, true
	}
	return answerer(v.answer).write(msg, out), true
}

// answer works on a message that has a reply.
func (v *value) answer(op uint32, node uint64, msg []byte, r *reply) errno {
	body := msg[headerSize:]
	switch op {
	case opInit:
		greet(body, wanted, r)
		return 0
	case opLookup:
		text, _, _ := strings.Cut(string(body), "\x00")
		return v.lookup(node, text, r)
	case opGetAttr:
		return v.getAttr(node, r)
	case opReadlink:
		return v.readlink(node, r)
	case opOpen:
		return v.openFile(node, binary.LittleEndian.Uint32(body), r)
	case opRead:
		return v.read(binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint32(body[16:]), r)
	case opStatFS:
		r.u64(0, 0, 0, 0, 0)
		r.u32(4096, nameMax, 4096, 0, 0, 0, 0, 0, 0, 0)
		return 0
	case opRelease:
		v.release(binary.LittleEndian.Uint64(body))
		return 0
	case opOpenDir:
		return v.openDir(node, r)
	case opReadDir, opReadDirPlus:
		return v.readDir(node, binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint32(body[16:]), op == opReadDirPlus, r)
	case opReleaseDir:
		v.mu.Lock()
		defer v.mu.Unlock()
		fh := binary.LittleEndian.Uint64(body)
		v.listed.give(len(v.lists[fh]))
		delete(v.lists, fh)
		return 0
	case opAccess:
		_, code := v.get(node)
		return code
	case opFlush:
		return 0
	case opSetAttr, opSymlink, opMknod, opMkdir, opUnlink, opRmdir, opRename, opLink, opWrite, opSetXAttr, opRemoveXAttr, opCreate, opFallocate, opRename2, opCopy:
		return eROFS
	}
	return eNOSYS
}

// get returns the path with a number.
func (v *value) get(id uint64) (string, errno) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.byID[id]; n != nil {
		return n.path, 0
	}
	return "", eSTALE
}

// meet returns the number of a path, and counts that the guest is told of it.
func (v *value) meet(p string) (uint64, errno) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.byPath[p]
	if n == nil {
		if len(v.byID) >= maxNodes {
			return 0, eNFILE
		}
		n = &name{id: v.next, path: p}
		v.next++
		v.byID[n.id], v.byPath[p] = n, n
	}
	n.lookups++
	return n.id, 0
}

func (v *value) forget(id, count uint64) {
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
func valueError(err error) errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrNotExist):
		return eNOENT
	case errors.Is(err, fs.ErrPermission):
		return eACCES
	case errors.Is(err, fs.ErrInvalid):
		return eINVAL
	case errors.Is(err, fs.ErrClosed):
		return eBADF
	}
	return hostError(err)
}

// attributes returns what the guest is told of a file.
func attributes(id uint64, info fs.FileInfo) attr {
	mode := uint32(info.Mode().Perm())
	switch m := info.Mode(); {
	case m.IsDir():
		mode |= typeDir | 0o555
	case m&fs.ModeSymlink != 0:
		mode |= typeLink
	default:
		mode |= typeFile | 0o444 // whatever else it is, it can be read or not
	}
	size, t := uint64(max(0, info.Size())), info.ModTime()
	return attr{ino: id, size: size, blocks: (size + 511) / 512, atime: t, mtime: t, ctime: t, mode: mode, nlink: 1, io: 4096}
}

// entry finds a file and counts that the guest is told of it.
func (v *value) entry(p string) (id uint64, a attr, code errno) {
	info, err := fs.Lstat(v.fsys, p)
	if err != nil {
		return 0, a, valueError(err)
	}
	if id, code = v.meet(p); code != 0 {
		return 0, a, code
	}
	return id, attributes(id, info), 0
}

func (v *value) lookup(node uint64, base string, r *reply) errno {
	if code := nameError(base); code != 0 {
		return code
	}
	if node == rootID && base == pollName {
		r.entry(pollNode, pollAttr())
		return 0
	}
	dir, code := v.get(node)
	if code != 0 {
		return code
	}
	p := path.Join(dir, base)
	if !fs.ValidPath(p) { // its text is no UTF-8
		return eNOENT
	}
	id, a, code := v.entry(p)
	if code != 0 {
		return code
	}
	v.told(id)
	r.entry(id, a)
	return 0
}

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

func (v *value) getAttr(node uint64, r *reply) errno {
	a := pollAttr()
	if node != pollNode {
		p, code := v.get(node)
		if code != 0 {
			return code
		}
		info, err := fs.Lstat(v.fsys, p)
		if err != nil {
			return valueError(err)
		}
		a = attributes(node, info)
		v.told(node)
	}
	r.attrOut(a)
	return 0
}

func (v *value) readlink(node uint64, r *reply) errno {
	p, code := v.get(node)
	if code != 0 {
		return code
	}
	text, err := fs.ReadLink(v.fsys, p)
	if len(text) >= pathMax {
		return eNAMETOOLONG
	}
	r.bytes([]byte(text), false)
	return valueError(err)
}

// openFile opens a file. The lowest two bits of the flags say whether it is to be written.
func (v *value) openFile(node uint64, flags uint32, r *reply) errno {
	if node == pollNode {
		r.u64(0, 0)
		return 0
	}
	if flags&3 != 0 {
		return eROFS
	}
	p, code := v.get(node)
	if code != 0 {
		return code
	}
	f := &reader{fsys: v.fsys, path: p}
	if err := f.reopen(); err != nil {
		return valueError(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.open) >= maxHandles {
		f.close()
		return eNFILE
	}
	v.next++
	v.open[v.next] = f
	r.u64(v.next, 0)
	return 0
}

func (v *value) read(fh, offset uint64, size uint32, r *reply) errno {
	v.mu.Lock()
	f := v.open[fh]
	v.mu.Unlock()
	if f == nil {
		return eBADF
	}
	if int64(offset) < 0 || !r.room(int(size)) {
		return eINVAL
	}
	n, err := f.readAt(r.b[r.at:r.at+int(size)], int64(offset))
	if err != nil && err != io.EOF {
		return valueError(err)
	}
	if n < 0 || n > int(size) { // a file system of a caller's that counts wrong
		return eIO
	}
	r.at += n
	return 0
}

func (v *value) release(fh uint64) {
	v.mu.Lock()
	f := v.open[fh]
	delete(v.open, fh)
	v.mu.Unlock()
	if f != nil {
		f.close()
	}
}

func (v *value) openDir(node uint64, r *reply) errno {
	p, code := v.get(node)
	if code != 0 {
		return code
	}
	entries, err := fs.ReadDir(v.fsys, p)
	if err != nil {
		return valueError(err)
	}
	list := []listEntry{{".", typeDir}, {"..", typeDir}}
	for _, e := range entries {
		mode := uint32(typeFile)
		switch {
		case nameError(e.Name()) != 0:
			continue
		case e.IsDir():
			mode = typeDir
		case e.Type()&fs.ModeSymlink != 0:
			mode = typeLink
		}
		list = append(list, listEntry{e.Name(), mode})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.lists) >= maxHandles || !v.listed.take(len(list)) {
		return eNFILE
	}
	if n := v.byID[node]; n != nil {
		n.asked.size = len(list)
	}
	v.next++
	v.lists[v.next] = list
	r.u64(v.next, 0)
	return 0
}

// readDir lists a directory from an offset on, in at most size bytes, and with plus tells of each file too.
func (v *value) readDir(node, fh, offset uint64, size uint32, plus bool, r *reply) errno {
	dir, code := v.get(node)
	if code != 0 {
		return code
	}
	v.mu.Lock()
	list, ok := v.lists[fh]
	v.mu.Unlock()
	if !ok {
		return eBADF
	}
	left := int(size)
	for i := offset; i < uint64(len(list)); i++ {
		e := list[i]
		if left -= direntLen(e.name, plus); left < 0 {
			return 0
		}
		ino := uint64(unknownIno)
		if plus {
			var id uint64
			var a attr
			if i >= 2 {
				id, a, _ = v.entry(path.Join(dir, e.name)) // one that has gone meanwhile is 0: the guest asks if it must know
			}
			r.entry(id, a)
			if id != 0 {
				ino = id
			}
		}
		r.dirent(e, ino, i+1)
	}
	return 0
}

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
