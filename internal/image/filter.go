package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// errReplan is the answer of a single pass to an archive whose later entries change what earlier ones made. The archive
// is then read twice: once for a plan, once for the content.
var errReplan = errors.New("layer changes a name it has made")

// A filter turns the archive of a layer into one that the image writer handles without fault: each name once, hard links
// to what is there, parents before children, no symbolic link on the way to a name, only values that ext4 can hold.
type filter struct {
	limits Limits
	tree   *tree
	entry  int   // index of the current entry
	bytes  int64 // content of files so far
	buf    []byte
	many   func() error // called when there are many entries; nil is not
}

func newFilter(l Limits) *filter {
	return &filter{limits: l, tree: newTree(l.LayerEntries), buf: make([]byte, 64<<10)}
}

// each calls do for every entry that makes something, with a clean header.
func (f *filter) each(r *tar.Reader, do func(h *tar.Header) error) error {
	for f.entry = 0; ; f.entry++ {
		if f.entry > 2*f.limits.LayerEntries {
			return fmt.Errorf("more than %d entries in the layer, raise the limit if that is right: %w", f.entry, errs.ErrInvalid)
		}
		if f.entry == manyEntries && f.many != nil {
			if err := f.many(); err != nil {
				return err
			}
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read entry %d of the layer: %w", f.entry, err)
		}
		c, err := clean(h)
		if err != nil {
			return fmt.Errorf("entry %d of the layer: %w", f.entry, err)
		}
		if c == nil {
			continue
		}
		if f.bytes += c.Size; c.Size > f.limits.LayerSize || f.bytes > f.limits.LayerSize {
			return fmt.Errorf("layer holds more than %d bytes, raise the limit if that is right: %w", f.limits.LayerSize, errs.ErrInvalid)
		}
		if err := do(c); err != nil {
			return fmt.Errorf("entry %d of the layer: %w", f.entry, err)
		}
	}
}

// stream filters in one pass. It returns errReplan where the archive needs two.
func (f *filter) stream(r *tar.Reader, w *tar.Writer) error {
	f.tree.implied = func(name string) error { return w.WriteHeader(impliedDir(name)) }
	err := f.each(r, func(h *tar.Header) error {
		emit, err := f.add(h)
		if err != nil || !emit {
			return err
		}
		return f.copyEntry(w, h, r)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func (f *filter) copyEntry(w *tar.Writer, h *tar.Header, r io.Reader) error {
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("write header of %.60q: %w", h.Name, err)
	}
	if h.Size == 0 {
		return nil
	}
	_, err := io.CopyBuffer(w, r, f.buf)
	return err
}

func impliedDir(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}
}

// whiteout tells what a name means to overlayfs: the name it hides, and whether it is a marker rather than a file.
func whiteout(name string) (hidden string, opaque, marker bool) {
	base := path.Base(name)
	switch {
	case base == whiteoutOpaque:
		return "", true, true
	case strings.HasPrefix(base, whiteoutMeta): // aufs's own files
		return "", false, true
	case strings.HasPrefix(base, whiteoutPrefix):
		return base[len(whiteoutPrefix):], false, true
	}
	return "", false, false
}

// add puts an entry into the tree in a single pass and gives the header its final name. It reports whether the entry is
// to be written.
func (f *filter) add(h *tar.Header) (bool, error) {
	p, err := f.tree.find(h.Name)
	if err != nil {
		return false, err
	}
	if len(p.path) == 0 {
		return f.addDir(h, p)
	}
	if hidden, opaque, marker := whiteout(p.name); marker {
		return f.addWhiteout(h, p, hidden, opaque)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return f.addDir(h, p)
	case tar.TypeLink:
		return f.addLink(h, p)
	}
	if p.node != nil {
		return false, errReplan
	}
	h.Name = p.String()
	return true, f.tree.put(p.parent, p.name, &node{ino: newInode(h, f.entry)})
}

func newInode(h *tar.Header, entry int) *inode {
	if h.Typeflag == tar.TypeSymlink {
		return &inode{entry: entry, kind: kindSymlink, target: h.Linkname}
	}
	return &inode{entry: entry, kind: kindFile}
}

// addDir takes a directory. One that is there gets the new entry's owner, mode and times, as the image writer does it;
// with attributes involved the writer is not to be trusted.
func (f *filter) addDir(h *tar.Header, p place) (bool, error) {
	if h.Typeflag != tar.TypeDir {
		return false, fmt.Errorf("the layer's root is no directory: %w", errs.ErrInvalid)
	}
	h.Name = p.String() + "/"
	if len(p.path) == 0 {
		h.Name = "./"
	}
	has := len(h.PAXRecords) > 0
	n := p.node
	if n == nil {
		n = newDir(f.entry)
		n.xattrs = has
		return true, f.tree.put(p.parent, p.name, n)
	}
	if !n.isDir() || n.xattrs || (n.opaque && has) {
		return false, errReplan
	}
	n.ino.entry, n.xattrs = f.entry, has
	return true, nil
}

func (f *filter) addLink(h *tar.Header, p place) (bool, error) {
	ino, err := f.tree.lookup(h.Linkname)
	if err != nil {
		return false, err
	}
	if ino == nil {
		return false, errReplan // the target may come later
	}
	if ino.kind == kindDir {
		return false, linkToDir(p, h)
	}
	if p.node != nil {
		if p.node.ino == ino {
			return false, nil
		}
		return false, errReplan
	}
	target, err := f.tree.find(h.Linkname)
	if err != nil {
		return false, err
	}
	h.Name, h.Linkname = p.String(), target.String()
	return true, f.tree.put(p.parent, p.name, &node{ino: ino})
}

func linkToDir(p place, h *tar.Header) error {
	return fmt.Errorf("%.60q is a hard link to the directory %.60q: %w", p.String(), h.Linkname, errs.ErrInvalid)
}

func (f *filter) addWhiteout(h *tar.Header, p place, hidden string, opaque bool) (bool, error) {
	h.Typeflag, h.Size, h.Linkname, h.PAXRecords = tar.TypeReg, 0, "", nil
	if opaque {
		if p.parent.xattrs {
			return false, errReplan
		}
		p.parent.opaque = true
		h.Name = p.String()
		return true, nil
	}
	if hidden == "" {
		return false, nil
	}
	if err := checkHidden(p, hidden); err != nil {
		return false, err
	}
	if p.parent.children[hidden] != nil {
		return false, errReplan
	}
	h.Name = p.String()
	// One of the root's lost+found is made when the image is finished.
	emit := p.parent != f.tree.root || hidden != lostFound
	return emit, f.tree.put(p.parent, hidden, &node{})
}

func checkHidden(p place, hidden string) error {
	if hidden == "." || hidden == ".." {
		return fmt.Errorf("%.60q hides no name: %w", p.String(), errs.ErrInvalid)
	}
	return nil
}

// sortedNames returns the names below a directory in a fixed order.
func sortedNames(children map[string]*node) []string {
	names := make([]string, 0, len(children))
	for name := range children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
