//go:build linux || darwin

package share

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// tree is a directory, or a single file, of the host as a file system of the protocol, by os.Root and what each Unix has.
// It is what dir is where the host is not Linux. Names are resolved by os.Root, which does not leave the directory; what is
// found under one must be the file that the guest means, so a directory that has become a link is an error. There are no
// attributes, and of locks the guest's kernel knows only its own.
type tree struct {
	root     *os.Root
	base     string // the name of a single file in root; "" of a directory
	rootDev  uint64
	readOnly bool
	real     bool // this process may change owners
	uid, gid uint32
	nodes    *nodes
	ahead    aheadFunc // nil tells nobody
	listed   budget

	mu   sync.Mutex
	open map[uint64]*opened
	most int // that may be open
	next uint64
}

var _ backend = (*tree)(nil)

// openTree opens a directory or a regular file to be shared. file tells which it is.
func openTree(path string, readOnly bool) (f *served, file bool, err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, false, err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil, false, err
	}
	t := &tree{readOnly: readOnly, real: os.Geteuid() == 0, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), open: make(map[uint64]*opened), most: handleLimit()}
	if !st.IsDir() {
		path, t.base = filepath.Split(path)
	}
	if t.root, err = os.OpenRoot(path); err != nil {
		return nil, false, err
	}
	h, err := t.stat(t.root, t.rootName())
	if err != nil {
		t.root.Close()
		return nil, false, err
	}
	t.rootDev, t.nodes = h.is.dev, newNodes(h.is)
	return &served{t, t.close}, t.base != "", nil
}

// close closes what the guest has left open.
func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.open {
		o.close()
	}
	clear(t.open)
	t.root.Close()
}

func (t *tree) onAhead(fn aheadFunc) { t.ahead = fn }

// end does nothing: nobody waits.
func (t *tree) end() {}

// handle implements backend.
func (t *tree) handle(msg, out []byte) (int, bool) {
	if forgetting(msg, t.nodes.forget) || binary.LittleEndian.Uint32(msg[4:]) == opInterrupt { // nobody waits
		return 0, true
	}
	return answerer(t.answer).write(msg, out), true
}

// answer works on a message that has a reply.
func (t *tree) answer(op uint32, node uint64, msg []byte, r *reply) errno {
	body := msg[headerSize:]
	switch op {
	case opInit:
		greet(body, wanted|killPriv, r)
		return 0
	case opLookup:
		return treeError(t.lookup(node, text1(body), r))
	case opGetAttr:
		return treeError(t.getAttr(node, r))
	case opReadlink:
		return treeError(t.readlink(node, r))
	case opAccess:
		_, err := t.nodes.get(node) // the guest's kernel looks at owners and modes itself
		return treeError(err)
	case opStatFS:
		return treeError(t.statFS(r))
	case opOpen, opRead, opWrite, opFlush, opFsync, opRelease, opOpenDir, opReadDir, opReadDirPlus, opReleaseDir, opFsyncDir:
		return treeError(t.useFile(op, node, body, r))
	case opSetAttr, opSymlink, opMknod, opMkdir, opUnlink, opRmdir, opRename, opLink, opCreate, opRename2:
		if t.readOnly {
			return eROFS
		}
		return treeError(t.change(op, node, msg, r))
	case opSetXAttr, opRemoveXAttr, opFallocate, opCopy:
		if t.readOnly {
			return eROFS
		}
	}
	return eNOSYS // the guest's kernel does without
}

// text1 and text2 return the strings that a body begins with, which check has counted.
func text1(body []byte) string {
	s, _, _ := strings.Cut(string(body), "\x00")
	return s
}

func text2(body []byte) (a, b string) {
	a, rest, _ := strings.Cut(string(body), "\x00")
	b, _, _ = strings.Cut(rest, "\x00")
	return a, b
}

// treeError is the gate of errors.
func treeError(err error) errno {
	var code errno
	var host syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return code
	case errors.As(err, &host):
		return hostError(host)
	case errors.Is(err, fs.ErrClosed):
		return eBADF
	}
	return eIO
}

// stat tells of a file in a directory. Links are not followed.
func (t *tree) stat(r *os.Root, name string) (hostStat, error) {
	info, err := r.Lstat(name)
	if err != nil {
		return hostStat{}, err
	}
	return statOf(info)
}

// rootName is where the root of the share is in t.root.
func (t *tree) rootName() string {
	if t.base != "" {
		return t.base
	}
	return "."
}

// dir calls fn with the directory of a node, which is opened by its name and must be the one that the guest knows.
func (t *tree) dir(n *node, fn func(r *os.Root) error) error {
	if n.is.kind != typeDir {
		return eNOTDIR
	}
	if n.id == rootID {
		return fn(t.root)
	}
	err := error(eNOENT)
	for _, p := range t.nodes.paths(n) {
		r, oerr := t.root.OpenRoot(p)
		if oerr != nil {
			err = stale(oerr)
			continue
		}
		st, serr := t.stat(r, ".")
		if serr == nil && st.is == n.is {
			defer r.Close()
			return fn(r)
		}
		r.Close()
		err = eSTALE
	}
	return err
}

// stale is the error of a name that leads nowhere any more.
func stale(err error) error {
	if treeError(err) == eNOENT {
		return eNOENT
	}
	return eSTALE
}

// file calls fn with the file of a node, by a name that it has or, where it has none any more, by a handle.
func (t *tree) file(id uint64, fn func(n *node, f target) error) error {
	n, err := t.nodes.get(id)
	if err != nil {
		return err
	}
	if n.id == rootID {
		return t.gone(t.itself(n, fn))
	}
	missing := error(eNOENT)
	for _, l := range t.nodes.places(n) {
		found := false
		err := t.dir(l.dir, func(r *os.Root) error {
			st, err := t.stat(r, l.name)
			if err == nil && st.is != n.is {
				err = eSTALE
			}
			if err != nil {
				return err
			}
			found = true
			return fn(n, &namedFile{t, r, l.name, st})
		})
		if found {
			return err
		}
		missing = err
	}
	if o := t.anyOpen(n); o != nil {
		if st, err := o.stat(); err == nil { // or it has just been closed
			return fn(n, &heldFile{t, o, st})
		}
	}
	return t.gone(missing)
}

// itself is file for the root of the share: a single file is the one that has its name, since editors put another one there.
func (t *tree) itself(n *node, fn func(n *node, f target) error) error {
	st, err := t.stat(t.root, t.rootName())
	if err == nil && st.is.kind != n.is.kind {
		err = eSTALE
	}
	if err != nil {
		return err
	}
	return fn(n, &namedFile{t, t.root, t.rootName(), st})
}

// gone turns the error of a file that is not found into EIO where the whole directory was removed.
func (t *tree) gone(err error) error {
	if err == nil || treeError(err) != eNOENT {
		return err
	}
	if st, serr := t.stat(t.root, "."); serr != nil || st.nlink == 0 {
		return eIO
	}
	return err
}

// in calls fn with a directory that the guest names.
func (t *tree) in(id uint64, fn func(n *node, r *os.Root) error) error {
	n, err := t.nodes.get(id)
	if err != nil {
		return err
	}
	return t.gone(t.dir(n, func(r *os.Root) error { return fn(n, r) }))
}

// withFD calls fn with a descriptor of a directory.
func withFD(r *os.Root, fn func(fd int) error) error {
	f, err := r.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return control(f, fn)
}

// control calls fn with the descriptor of a file, which is not closed meanwhile.
func control(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) { err = fn(int(fd)) })
	return cmp.Or(cerr, err)
}
