package ext4

import (
	"bytes"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	extentMagic = 0xf30a
	extentSize  = 12
	maxDepth    = 5
	// Bounds of what is read of a hostile file system: extents and nodes of one file, and bytes of one directory.
	maxExtents   = 1 << 20
	maxNodes     = 4096
	maxDirectory = 256 << 20
	// An extent longer than this has no content yet: it reads as zeros.
	maxWritten = 32768
)

// extent is a run of blocks with content.
type extent struct {
	first int64 // block of the file
	count int64
	at    int64 // block of the volume
}

// extents returns the runs of an inode in order.
func (v *Volume) extents(n *Inode) ([]extent, error) {
	if n.flags&flagExtents == 0 {
		if n.Size == 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("inode %d has no extents: %w", n.Number, errs.ErrUnsupported)
	}
	w := extentWalk{v: v, number: n.Number}
	err := w.node(n.raw[40:100], -1)
	return w.out, err
}

type extentWalk struct {
	v      *Volume
	number uint32
	next   int64 // lowest block that may come
	nodes  int
	out    []extent
}

func (w *extentWalk) corrupt(what string) error {
	return fmt.Errorf("inode %d: %s: %w", w.number, what, errs.ErrCorrupt)
}

// node walks one node of the tree; depth is what its parent says, -1 for the root.
func (w *extentWalk) node(b []byte, depth int) error {
	count, has := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	w.nodes++
	switch {
	case le.Uint16(b) != extentMagic, (count+1)*extentSize > len(b), has > maxDepth, depth >= 0 && has != depth:
		return w.corrupt("node of extents that cannot be")
	case w.nodes > maxNodes:
		return w.corrupt("too many nodes of extents")
	}
	for i := range count {
		e := b[(i+1)*extentSize:]
		if has == 0 {
			if err := w.leaf(e); err != nil {
				return err
			}
			continue
		}
		block := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
		child := make([]byte, w.v.blockSize)
		if err := w.v.block(child, block); err != nil {
			return err
		}
		if err := w.node(child, has-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *extentWalk) leaf(e []byte) error {
	x := extent{first: int64(le.Uint32(e)), count: int64(le.Uint16(e[4:])), at: int64(le.Uint32(e[8:])) | int64(le.Uint16(e[6:]))<<32}
	empty := x.count > maxWritten
	if empty {
		x.count -= maxWritten
	}
	if x.first < w.next || x.count == 0 || x.at <= 0 || x.at+x.count > w.v.blocks {
		return w.corrupt("extent out of bounds")
	}
	w.next = x.first + x.count
	if !empty {
		w.out = append(w.out, x)
	}
	if len(w.out) > maxExtents {
		return w.corrupt("too many extents")
	}
	return nil
}

func (v *Volume) block(p []byte, block int64) error {
	if block <= 0 || block >= v.blocks {
		return fmt.Errorf("block %d of %d: %w", block, v.blocks, errs.ErrCorrupt)
	}
	if _, err := v.r.ReadAt(p, block*v.blockSize); err != nil {
		return fmt.Errorf("read block %d: %w", block, noEOF(err))
	}
	return nil
}

// File returns the content of a regular file, or of any other inode that has blocks. Holes read as zeros.
func (v *Volume) File(n *Inode) (io.Reader, error) {
	runs, err := v.extents(n)
	return &reader{v: v, runs: runs, size: n.Size}, err
}

type reader struct {
	v    *Volume
	runs []extent
	size int64
	pos  int64
}

// Read reads the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.pos)]
	for len(r.runs) > 0 && (r.runs[0].first+r.runs[0].count)*r.v.blockSize <= r.pos {
		r.runs = r.runs[1:]
	}
	if len(r.runs) == 0 || r.pos < r.runs[0].first*r.v.blockSize { // a hole
		if len(r.runs) > 0 {
			p = p[:min(int64(len(p)), r.runs[0].first*r.v.blockSize-r.pos)]
		}
		clear(p)
		r.pos += int64(len(p))
		return len(p), nil
	}
	x := r.runs[0]
	p = p[:min(int64(len(p)), (x.first+x.count)*r.v.blockSize-r.pos)]
	n, err := r.v.r.ReadAt(p, x.at*r.v.blockSize+r.pos-x.first*r.v.blockSize)
	r.pos += int64(n)
	if n == len(p) {
		return n, nil
	}
	return n, noEOF(err)
}

// Link returns the target of a symbolic link.
func (v *Volume) Link(n *Inode) (string, error) {
	switch {
	case n.Type() != TypeSymlink:
		return "", fmt.Errorf("inode %d is no symbolic link: %w", n.Number, errs.ErrInvalid)
	case n.Size > 4096:
		return "", fmt.Errorf("inode %d is a link to a name of %d bytes: %w", n.Number, n.Size, errs.ErrCorrupt)
	case n.Size < 60 && n.flags&flagExtents == 0:
		return string(n.raw[40 : 40+n.Size]), nil
	}
	r, err := v.File(n)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), err
}

// ReadDir calls do for each name of a directory but "." and "..", until it returns false.
func (v *Volume) ReadDir(n *Inode, do func(name string, inode uint32) bool) error {
	if n.Type() != TypeDir {
		return fmt.Errorf("inode %d is no directory: %w", n.Number, errs.ErrInvalid)
	}
	if n.Size > maxDirectory || n.Size%v.blockSize != 0 {
		return fmt.Errorf("directory %d has %d bytes: %w", n.Number, n.Size, errs.ErrCorrupt)
	}
	r, err := v.File(n)
	if err != nil {
		return err
	}
	block := make([]byte, v.blockSize)
	for range n.Size / v.blockSize {
		if _, err := io.ReadFull(r, block); err != nil {
			return noEOF(err)
		}
		for b := block; len(b) > 0; {
			size := 0
			if len(b) >= 8 {
				size = int(le.Uint16(b[4:]))
			}
			if size < 8 || size > len(b) || 8+int(b[6]) > size {
				return fmt.Errorf("directory %d has an entry that cannot be: %w", n.Number, errs.ErrCorrupt)
			}
			name, inode := b[8:8+int(b[6])], le.Uint32(b)
			b = b[size:]
			if inode == 0 || len(name) == 0 || string(name) == "." || string(name) == ".." {
				continue
			}
			if !do(string(name), inode) {
				return nil
			}
		}
	}
	return nil
}

// Inode returns an inode by the number that ReadDir told.
func (v *Volume) Inode(number uint32) (*Inode, error) { return v.inode(number) }

// Lookup finds a name in a directory. One that is not there is ErrNotFound.
func (v *Volume) Lookup(dir *Inode, name string) (*Inode, error) {
	var found uint32
	err := v.ReadDir(dir, func(has string, inode uint32) bool {
		if has == name {
			found = inode
		}
		return found == 0
	})
	switch {
	case err != nil:
		return nil, err
	case found == 0:
		return nil, fmt.Errorf("%.100q: %w", name, errs.ErrNotFound)
	}
	return v.inode(found)
}

const attrMagic = 0xea020000

// Attrs returns the extended attributes. ACLs are in the form that ext4 stores.
func (v *Volume) Attrs(n *Inode) (map[string]string, error) {
	out := map[string]string{}
	if own := n.raw[128+n.extra():]; len(own) >= 4 && le.Uint32(own) == attrMagic {
		if err := attrs(own[4:], own[4:], out); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n.Number, err)
		}
	}
	if n.acl == 0 {
		return out, nil
	}
	block := make([]byte, v.blockSize)
	if err := v.block(block, n.acl); err != nil {
		return nil, err
	}
	if le.Uint32(block) != attrMagic || le.Uint32(block[8:]) != 1 {
		return nil, fmt.Errorf("inode %d has attributes in block %d, which holds none: %w", n.Number, n.acl, errs.ErrCorrupt)
	}
	if err := attrs(block[32:], block, out); err != nil {
		return nil, fmt.Errorf("inode %d: %w", n.Number, err)
	}
	return out, nil
}

// attrs reads a list of attributes whose values are at offsets of base.
func attrs(list, base []byte, out map[string]string) error {
	corrupt := fmt.Errorf("extended attributes that cannot be: %w", errs.ErrCorrupt)
	for {
		if len(list) < 4 || bytes.Equal(list[:4], []byte{0, 0, 0, 0}) {
			return nil
		}
		if len(list) < 16+int(list[0]) {
			return corrupt
		}
		name, index := list[16:16+int(list[0])], int(list[1])
		at, size := int64(le.Uint16(list[2:])), int64(le.Uint32(list[8:]))
		prefix, ok := attrPrefix(index)
		if !ok || le.Uint32(list[4:]) != 0 || at+size > int64(len(base)) {
			return corrupt
		}
		out[prefix+string(name)] = string(base[at : at+size])
		list = list[min(len(list), (16+len(name)+3)&^3):]
	}
}

func attrPrefix(index int) (string, bool) {
	switch index {
	case 1:
		return "user.", true
	case 2:
		return "system.posix_acl_access", true
	case 3:
		return "system.posix_acl_default", true
	case 4:
		return "trusted.", true
	case 6:
		return "security.", true
	}
	return "", false
}
