//go:build linux || darwin

package share

import (
	"os"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// attr is what the guest is told of a file.
func (t *tree) attr(f target) attr {
	a := f.status().attr
	o := t.owner(f)
	a.uid, a.gid = o.uid, o.gid
	if dev := f.status().is.dev; dev != t.rootDev {
		a.ino ^= dev << 40 // another file system that is mounted below
	}
	return a
}

// entry finds a name in a directory, counts that the guest is told of it and returns its number.
func (t *tree) entry(dir *node, r *os.Root, name string) (uint64, attr, error) {
	st, err := t.stat(r, name)
	if err != nil {
		return 0, attr{}, err
	}
	n, err := t.nodes.meet(dir, name, st.is)
	if err != nil {
		return 0, attr{}, err
	}
	return n.id, t.attr(&namedFile{t, r, name, st}), nil
}

func (t *tree) lookup(id uint64, name string, r *reply) error {
	if code := nameError(name); code != 0 {
		return code
	}
	if id == rootID && name == pollName {
		r.entry(pollNode, pollAttr())
		return nil
	}
	return t.in(id, func(n *node, root *os.Root) error {
		child, a, err := t.entry(n, root, name)
		if err != nil {
			return err
		}
		t.told(child)
		r.entry(child, a)
		return nil
	})
}

// told notes that the guest has asked for one file, and tells it to read the directory where it does so often.
func (t *tree) told(id uint64) {
	if t.ahead == nil {
		return
	}
	if p, n := t.nodes.told(id, time.Now()); n > 0 {
		t.ahead(api.ReadAhead{Path: p, Entries: n})
	}
}

func (t *tree) getAttr(id uint64, r *reply) error {
	if id == pollNode {
		r.attrOut(pollAttr())
		return nil
	}
	err := t.file(id, func(_ *node, f target) error {
		r.attrOut(t.attr(f))
		return nil
	})
	if err == nil {
		t.told(id)
	}
	return err
}

func (t *tree) readlink(id uint64, r *reply) error {
	return t.file(id, func(n *node, f target) error {
		at, ok := f.(*namedFile)
		if !ok || n.is.kind != typeLink {
			return eINVAL
		}
		text, err := at.r.Readlink(at.name)
		if len(text) >= pathMax {
			return eNAMETOOLONG
		}
		r.bytes([]byte(text), false)
		return err
	})
}

func (t *tree) statFS(r *reply) error {
	return withFD(t.root, func(fd int) error {
		s, err := statFS(fd)
		if err != nil {
			return err
		}
		r.u64(s.blocks, s.free, s.avail, s.files, s.filesFree)
		r.u32(s.block, nameMax, s.fragment, 0, 0, 0, 0, 0, 0, 0)
		return nil
	})
}
