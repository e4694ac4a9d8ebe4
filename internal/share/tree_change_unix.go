//go:build linux || darwin

package share

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// change works on a message that changes something by name.
func (t *tree) change(op uint32, id uint64, msg []byte, r *reply) error {
	body, caller := msg[headerSize:], owner{binary.LittleEndian.Uint32(msg[24:]), binary.LittleEndian.Uint32(msg[28:])}
	switch op {
	case opSetAttr:
		return t.setAttr(id, body, r)
	case opMkdir:
		mode := binary.LittleEndian.Uint32(body)
		return t.make(id, text1(body[8:]), caller, mode, r, func(d *os.Root, name string) error { return d.Mkdir(name, fs.FileMode(mode&0o777)) })
	case opSymlink:
		name, target := text2(body)
		return t.make(id, name, caller, 0, r, func(d *os.Root, name string) error { return d.Symlink(target, name) })
	case opMknod:
		return t.mknod(id, text1(body[16:]), caller, binary.LittleEndian.Uint32(body), r)
	case opCreate:
		return t.create(id, text1(body[16:]), caller, binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:]), r)
	case opLink:
		return t.link(id, binary.LittleEndian.Uint64(body), text1(body[8:]), r)
	case opUnlink:
		return t.remove(id, text1(body), 0)
	case opRmdir:
		return t.remove(id, text1(body), unix.AT_REMOVEDIR)
	case opRename:
		from, to := text2(body[8:])
		return t.rename(id, binary.LittleEndian.Uint64(body), from, to, 0)
	}
	from, to := text2(body[16:])
	return t.rename(id, binary.LittleEndian.Uint64(body), from, to, binary.LittleEndian.Uint32(body[8:]))
}

// setAttr changes attributes of a file.
func (t *tree) setAttr(id uint64, body []byte, r *reply) error {
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	valid := u32(body)
	return t.file(id, func(n *node, f target) error {
		if valid&(setUID|setGID) != 0 {
			want := owner{keep, keep}
			if valid&setUID != 0 {
				want.uid = u32(body[76:])
			}
			if valid&setGID != 0 {
				want.gid = u32(body[80:])
			}
			if err := t.setOwner(f, want); err != nil {
				return err
			}
		}
		if valid&setMode != 0 {
			if n.is.kind == typeLink {
				return eNOTSUP
			}
			if err := f.chmod(fileMode(safeMode(u32(body[68:]), n.is.kind == typeDir))); err != nil {
				return err
			}
		}
		if valid&setSize != 0 {
			if err := t.truncate(n, f, valid, u64(body[8:]), u64(body[16:])); err != nil {
				return err
			}
		}
		if err := setTreeTimes(n, f, valid, body); err != nil {
			return err
		}
		st, err := f.stat()
		if err != nil {
			return err
		}
		r.attrOut(t.attr(&seen{f, st}))
		return nil
	})
}

// seen is a target with a later state.
type seen struct {
	target
	st hostStat
}

func (s *seen) status() hostStat { return s.st }

// truncate sets the size of a file, by the handle that the guest names where there is one: that one may be written even
// where the file's mode has changed since.
func (t *tree) truncate(n *node, f target, valid uint32, fh, size uint64) error {
	if n.is.kind != typeFile {
		return eINVAL
	}
	if int64(size) < 0 {
		return eFBIG
	}
	if valid&setFH != 0 {
		if o, err := t.handleOf(fh, n.id); err == nil && o.writable {
			return o.file.Truncate(int64(size))
		}
	}
	return f.truncate(int64(size))
}

// maxSeconds bounds times, to what fits into nanoseconds.
const maxSeconds = 9e9

// setTreeTimes sets the times of a file. Those of a link cannot be set, which is no error: programs that unpack archives do
// not expect one.
func setTreeTimes(n *node, f target, valid uint32, body []byte) error {
	if valid&(setAtime|setMtime) == 0 || n.is.kind == typeLink {
		return nil
	}
	var at [2]time.Time
	for i, bits := range [][2]uint32{{setAtime, setAtimeNow}, {setMtime, setMtimeNow}} {
		sec, nsec := int64(binary.LittleEndian.Uint64(body[32+8*i:])), binary.LittleEndian.Uint32(body[56+4*i:])
		switch {
		case valid&bits[1] != 0:
			at[i] = time.Now()
		case valid&bits[0] == 0:
		case sec > maxSeconds || sec < -maxSeconds || nsec >= 1e9:
			return eINVAL
		default:
			at[i] = time.Unix(sec, int64(nsec))
		}
	}
	return f.chtimes(at[0], at[1])
}

// make makes a file in a directory and tells the guest of it.
func (t *tree) make(id uint64, name string, caller owner, mode uint32, r *reply, do func(d *os.Root, name string) error) error {
	if code := nameError(name); code != 0 {
		return code
	}
	return t.in(id, func(n *node, d *os.Root) error {
		if err := do(d, name); err != nil {
			return err
		}
		if err := t.finish(d, name, caller, mode); err != nil {
			return err
		}
		child, a, err := t.entry(n, d, name)
		r.entry(child, a)
		return err
	})
}

// finish gives a new file its owner and, where this process's mask has taken from that, its mode.
func (t *tree) finish(d *os.Root, name string, caller owner, mode uint32) error {
	above, err := t.stat(d, ".")
	if err != nil {
		return err
	}
	st, err := t.stat(d, name)
	if err != nil {
		return err
	}
	f := &namedFile{t, d, name, st}
	if above.mode&setGroup != 0 {
		caller.gid = t.owner(&namedFile{t, d, ".", above}).gid
	}
	if t.owner(f) != caller {
		if err := t.setOwner(f, caller); err != nil {
			return err
		}
	}
	if st.is.kind == typeLink {
		return nil
	}
	mode = safeMode(mode, st.is.kind == typeDir)
	if st.is.kind == typeDir {
		mode |= st.mode & setGroup // as the directory above has it
	}
	if mode == st.mode&0o7777 {
		return nil
	}
	return f.chmod(fileMode(mode))
}

// mknod makes a regular file. Pipes and sockets, which Linux has on a share, cannot be made in a confined way everywhere, and
// a device of the host is nothing that a guest may make.
func (t *tree) mknod(id uint64, name string, caller owner, mode uint32, r *reply) error {
	if mode&typeMask != typeFile {
		return ePERM
	}
	return t.make(id, name, caller, mode, r, func(d *os.Root, name string) error {
		f, err := d.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(safeMode(mode, false)&0o777))
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// create opens a file that it makes where it does not exist.
func (t *tree) create(id uint64, name string, caller owner, guest, mode uint32, r *reply) error {
	if code := nameError(name); code != 0 {
		return code
	}
	flags, err := openFlags(guest)
	if err != nil {
		return err
	}
	return t.in(id, func(parent *node, d *os.Root) error {
		f, made, err := t.createIn(d, name, flags, guest, mode)
		if err != nil {
			return err
		}
		if made {
			err = t.finish(d, name, caller, mode)
		}
		var child uint64
		var a attr
		if err == nil {
			child, a, err = t.entry(parent, d, name)
		}
		var n *node
		if err == nil {
			n, err = t.nodes.get(child)
		}
		if err != nil {
			f.Close()
			return err
		}
		fh, err := t.holdFile(n, f, guest&^openTrunc)
		r.entry(child, a)
		r.u64(fh, 0)
		return err
	})
}

func (t *tree) createIn(d *os.Root, name string, flags int, guest, mode uint32) (f *os.File, made bool, err error) {
	f, err = d.OpenFile(name, flags|os.O_CREATE|os.O_EXCL|syscall.O_NOCTTY, fs.FileMode(safeMode(mode, false)&0o777))
	if err == nil || guest&openExcl != 0 || !errors.Is(err, fs.ErrExist) {
		return f, err == nil, err
	}
	st, err := t.stat(d, name)
	if err == nil && st.is.kind != typeFile {
		err = ePERM
	}
	if err != nil {
		return nil, false, err
	}
	if f, err = (&namedFile{t, d, name, st}).open(flags); err != nil {
		return nil, false, err
	}
	if guest&openTrunc != 0 {
		if err = f.Truncate(0); err != nil {
			f.Close()
			return nil, false, err
		}
	}
	return f, false, nil
}

// link gives a file another name.
func (t *tree) link(id, old uint64, name string, r *reply) error {
	if code := nameError(name); code != 0 {
		return code
	}
	return t.in(id, func(parent *node, d *os.Root) error {
		return t.file(old, func(n *node, f target) error {
			at, ok := f.(*namedFile)
			if !ok {
				return eNOENT
			}
			if n.is.kind == typeDir {
				return ePERM
			}
			err := withFD(at.r, func(from int) error {
				return withFD(d, func(to int) error { return unix.Linkat(from, at.name, to, name, 0) })
			})
			if err != nil {
				return err
			}
			child, a, err := t.entry(parent, d, name)
			r.entry(child, a)
			return err
		})
	})
}

// remove removes a name; the system looks whether that is one of a directory.
func (t *tree) remove(id uint64, name string, flags int) error {
	if code := nameError(name); code != 0 {
		return code
	}
	return t.in(id, func(n *node, d *os.Root) error {
		err := withFD(d, func(fd int) error { return unix.Unlinkat(fd, name, flags) })
		if err == nil {
			t.nodes.removed(n, name)
		}
		return err
	})
}

// noReplace is the flag of a rename that keeps what has the new name.
const noReplace = 1

func (t *tree) rename(id, newDir uint64, name, newName string, flags uint32) error {
	for _, s := range []string{name, newName} {
		if code := nameError(s); code != 0 {
			return code
		}
	}
	if flags&^noReplace != 0 { // as a file system says that exchanges nothing
		return eINVAL
	}
	return t.in(id, func(from *node, d *os.Root) error {
		return t.in(newDir, func(to *node, newD *os.Root) error {
			err := withFD(d, func(fd int) error {
				return withFD(newD, func(newFD int) error { return renameAt(fd, name, newFD, newName, flags&noReplace != 0) })
			})
			if err == nil {
				t.nodes.renamed(link{from, name}, link{to, newName}, false)
			}
			return err
		})
	})
}
