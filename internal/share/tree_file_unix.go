//go:build linux || darwin

package share

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
)

// opened is a file or a directory that a guest has open.
type opened struct {
	n        *node
	writable bool
	file     *os.File // of a file
	root     *os.Root // of a directory

	mu    sync.Mutex
	names []string // of a directory, as it was when it was read from its beginning
	read  bool
}

func (o *opened) close() {
	if o.root != nil {
		o.root.Close()
	}
	if o.file != nil {
		o.file.Close()
	}
}

// with calls fn with the open file.
func (o *opened) with(fn func(f *os.File) error) error {
	if o.root == nil {
		return fn(o.file)
	}
	f, err := o.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(f)
}

func (o *opened) stat() (st hostStat, err error) {
	err = o.with(func(f *os.File) error {
		st, err = statFile(f)
		return err
	})
	return st, err
}

// hold makes a handle, which it closes where that fails.
func (t *tree) hold(o *opened) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= t.most {
		o.close()
		return 0, eNFILE
	}
	t.next++
	t.open[t.next] = o
	t.nodes.opened(o.n, int(t.next))
	return t.next, nil
}

// handleOf returns a handle of a node.
func (t *tree) handleOf(fh, id uint64) (*opened, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.open[fh]; o != nil && o.n.id == id {
		return o, nil
	}
	return nil, eBADF
}

// anyOpen returns a handle of a node, one that may be written where there is one, or nil.
func (t *tree) anyOpen(n *node) (found *opened) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fh := range t.nodes.handles(n) {
		if o := t.open[uint64(fh)]; o != nil && (found == nil || o.writable) {
			found = o
		}
	}
	return found
}

// useFile works on a message about what is open.
func (t *tree) useFile(op uint32, id uint64, body []byte, r *reply) error {
	switch op {
	case opOpen:
		return t.openFile(id, binary.LittleEndian.Uint32(body), r)
	case opOpenDir:
		return t.openDir(id, r)
	}
	fh := binary.LittleEndian.Uint64(body)
	if op == opRelease || op == opReleaseDir {
		t.release(fh)
		return nil
	}
	if id == pollNode && op == opFlush {
		return nil
	}
	o, err := t.handleOf(fh, id)
	if err != nil {
		return err
	}
	switch op {
	case opRead:
		return o.readAt(binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint32(body[16:]), r)
	case opWrite:
		if t.readOnly {
			return eROFS
		}
		return o.writeAt(binary.LittleEndian.Uint64(body[8:]), body[40:], r)
	case opReadDir, opReadDirPlus:
		return t.list(o, binary.LittleEndian.Uint64(body[8:]), binary.LittleEndian.Uint32(body[16:]), op == opReadDirPlus, r)
	case opFsync, opFsyncDir:
		return o.with((*os.File).Sync)
	}
	return nil // what was written is with the host's kernel already
}

// How Linux opens a file, as the guest says it.
const (
	accessMask = 3
	readWrite  = 2
	openExcl   = 0o200
	openTrunc  = 0o1000
	openData   = 0o10000 // O_DSYNC, which is a part of O_SYNC
)

// openFlags returns how a file of the host is opened.
func openFlags(guest uint32) (int, error) {
	how := [...]int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR}
	access := guest & accessMask
	if access > readWrite {
		return 0, eINVAL
	}
	flags := how[access]
	if guest&openData != 0 {
		flags |= os.O_SYNC
	}
	return flags, nil
}

func (t *tree) openFile(id uint64, guest uint32, r *reply) error {
	if id == pollNode {
		r.u64(0, 0)
		return nil
	}
	if t.readOnly && guest&(accessMask|openTrunc) != 0 {
		return eROFS
	}
	flags, err := openFlags(guest)
	if err != nil {
		return err
	}
	return t.file(id, func(n *node, f target) error {
		if n.is.kind != typeFile { // the guest's kernel has pipes, sockets and devices of its own
			return ePERM
		}
		at, ok := f.(*namedFile)
		if !ok {
			return eSTALE
		}
		file, err := at.open(flags)
		if err != nil {
			return err
		}
		fh, err := t.holdFile(n, file, guest)
		r.u64(fh, 0)
		return err
	})
}

// holdFile makes a handle of a file, and empties it where the guest says so.
func (t *tree) holdFile(n *node, file *os.File, guest uint32) (uint64, error) {
	if guest&openTrunc != 0 {
		if err := file.Truncate(0); err != nil {
			file.Close()
			return 0, err
		}
	}
	return t.hold(&opened{n: n, file: file, writable: guest&accessMask != 0})
}

func (t *tree) release(fh uint64) {
	t.mu.Lock()
	o := t.open[fh]
	delete(t.open, fh)
	t.mu.Unlock()
	if o == nil {
		return
	}
	if o.root != nil {
		t.nodes.reading(o.n, -1, 0)
	}
	t.nodes.closed(o.n, int(fh))
	o.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unload(&t.listed)
}

func (o *opened) readAt(offset uint64, size uint32, r *reply) error {
	if o.file == nil {
		return eBADF
	}
	if int64(offset) < 0 || !r.room(int(size)) {
		return eINVAL
	}
	n, err := o.file.ReadAt(r.b[r.at:r.at+int(size)], int64(offset))
	r.at += n
	if err == io.EOF || n > 0 {
		return nil
	}
	return err
}

func (o *opened) writeAt(offset uint64, data []byte, r *reply) error {
	if o.file == nil || !o.writable {
		return eBADF
	}
	if int64(offset) < 0 || int64(offset)+int64(len(data)) < 0 {
		return eFBIG
	}
	n, err := o.file.WriteAt(data, int64(offset))
	if n == 0 && err != nil {
		return err
	}
	r.u32(uint32(n), 0)
	return nil
}

func (t *tree) openDir(id uint64, r *reply) error {
	return t.in(id, func(n *node, root *os.Root) error {
		own, err := root.OpenRoot(".")
		if err != nil {
			return err
		}
		fh, err := t.hold(&opened{n: n, root: own})
		if err == nil {
			t.nodes.reading(n, 1, 0)
		}
		r.u64(fh, 0)
		return err
	})
}

// unload forgets the names in a directory. The caller holds mu.
func (o *opened) unload(all *budget) {
	all.give(len(o.names))
	o.names, o.read = nil, false
}

// load reads the names in a directory. The caller holds mu.
func (o *opened) load(all *budget) error {
	o.unload(all)
	f, err := o.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	for more := []string{".", ".."}; ; {
		if len(o.names)+len(more) > maxEntries {
			return eOVERFLOW
		}
		if !all.take(len(more)) {
			return eNFILE
		}
		o.names = append(o.names, more...)
		if o.read = errors.Is(err, io.EOF); o.read {
			return nil
		}
		if err != nil {
			return err
		}
		more, err = f.Readdirnames(4096)
		more = slices.DeleteFunc(more, func(s string) bool { return nameError(s) != 0 })
	}
}

// list lists a directory from an offset on, in at most size bytes, and with plus tells of each file too.
func (t *tree) list(o *opened, offset uint64, size uint32, plus bool, r *reply) error {
	if o.root == nil {
		return eBADF
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset == 0 || !o.read {
		if err := o.load(&t.listed); err != nil {
			return err
		}
	}
	left := int(size)
	for i := offset; i < uint64(len(o.names)); i++ {
		name := o.names[i]
		if left -= direntLen(name, plus); left < 0 {
			return nil
		}
		e, ino := listEntry{name: name}, uint64(unknownIno)
		if i < 2 {
			e.mode = typeDir
		}
		if plus {
			var id uint64
			var a attr
			if i >= 2 {
				id, a, _ = t.entry(o.n, o.root, name) // one that has gone meanwhile is 0: the guest asks if it must know
			}
			r.entry(id, a)
			if id != 0 {
				e.mode, ino = a.mode&typeMask, a.ino
			}
		}
		r.dirent(e, ino, i+1)
	}
	t.nodes.reading(o.n, 0, len(o.names))
	return nil
}
