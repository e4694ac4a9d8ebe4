package image

import (
	"archive/tar"
	"fmt"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// plan is what an archive comes to when all its entries are applied in order: for every entry that survives, the names
// that its file has in the end.
type plan struct {
	names     map[int][]string // entry to names; the first gets the content, the others are hard links to it
	implied   []string         // directories no entry names, parents first
	opaque    map[string]bool  // directories that hide the lower ones
	whiteouts []string         // names that hide lower ones
	lost      lostState        // of the image writer's lost+found
}

// link is a hard link whose target was not there when its entry came.
type link struct {
	at     string
	target string
	entry  int
}

// plan reads the whole archive, for names only.
func (f *filter) plan(r *tar.Reader) (*plan, error) {
	var late []link
	err := f.each(r, func(h *tar.Header) error {
		l, err := f.apply(h)
		if l != nil {
			late = append(late, *l)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, l := range late {
		if err := f.resolve(l); err != nil {
			return nil, fmt.Errorf("entry %d of the layer: %w", l.entry, err)
		}
	}
	p := &plan{names: map[int][]string{}, opaque: map[string]bool{}, lost: lostStateOf(f.tree.root)}
	p.collect("", f.tree.root)
	return p, nil
}

// apply puts an entry into the tree, replacing what is in its way as an extraction would.
func (f *filter) apply(h *tar.Header) (*link, error) {
	p, err := f.tree.find(h.Name)
	if err != nil {
		return nil, err
	}
	if len(p.path) == 0 {
		_, err := f.addRoot(h, p)
		return nil, err
	}
	if hidden, opaque, marker := whiteout(p.name); marker {
		return nil, f.hide(p, hidden, opaque)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if p.node.dirOrNil() {
			p.node.ino.entry = f.entry
			return nil, nil
		}
		n := newDir(f.entry)
		n.opaque = p.node != nil && p.node.ino == nil
		return nil, f.tree.put(p.parent, p.name, n)
	case tar.TypeLink:
		ino, err := f.tree.lookup(h.Linkname)
		if err != nil {
			return nil, err
		}
		if ino == nil {
			return &link{at: h.Name, target: h.Linkname, entry: f.entry}, nil
		}
		if ino.kind == kindDir {
			return nil, linkToDir(p, h)
		}
		return nil, f.tree.put(p.parent, p.name, &node{ino: ino})
	}
	return nil, f.tree.put(p.parent, p.name, &node{ino: newInode(h, f.entry)})
}

func (n *node) dirOrNil() bool { return n != nil && n.isDir() }

func (f *filter) addRoot(h *tar.Header, p place) (bool, error) {
	if h.Typeflag != tar.TypeDir {
		return false, fmt.Errorf("the layer's root is no directory: %w", errs.ErrInvalid)
	}
	p.node.ino.entry = f.entry
	return true, nil
}

// hide applies a whiteout. It hides what lower layers have, never what this layer makes, wherever in the archive it is.
func (f *filter) hide(p place, hidden string, opaque bool) error {
	if opaque {
		p.parent.opaque = true
		return nil
	}
	if hidden == "" {
		return nil
	}
	if err := checkHidden(p, hidden); err != nil {
		return err
	}
	switch n := p.parent.children[hidden]; {
	case n == nil:
		return f.tree.put(p.parent, hidden, &node{})
	case n.isDir():
		n.opaque = true
	}
	return nil
}

// resolve makes a hard link whose target came after it, unless something else took the link's name meanwhile.
func (f *filter) resolve(l link) error {
	ino, err := f.tree.lookup(l.target)
	if err != nil {
		return err
	}
	if ino == nil {
		return fmt.Errorf("%.60q is a hard link to %.60q, which the layer does not have: %w", l.at, l.target, errs.ErrInvalid)
	}
	p, err := f.tree.find(l.at)
	if err != nil {
		return err
	}
	if ino.kind == kindDir {
		return fmt.Errorf("%.60q is a hard link to the directory %.60q: %w", l.at, l.target, errs.ErrInvalid)
	}
	if p.node != nil && p.node.ino != nil {
		return nil
	}
	return f.tree.put(p.parent, p.name, &node{ino: ino})
}

func (p *plan) collect(at string, n *node) {
	switch {
	case n.ino == nil:
		p.whiteouts = append(p.whiteouts, at)
		return
	case n.ino.entry >= 0:
		p.names[n.ino.entry] = append(p.names[n.ino.entry], at)
	case at != "" || n.opaque:
		p.implied = append(p.implied, at)
	}
	if n.opaque {
		p.opaque[at] = true
	}
	for _, name := range sortedNames(n.children) {
		below := name
		if at != "" {
			below = at + "/" + name
		}
		p.collect(below, n.children[name])
	}
}

// write reads the archive again and writes what the plan keeps of it.
func (p *plan) write(f *filter, r *tar.Reader, w *tar.Writer) error {
	for _, name := range p.implied {
		h := impliedDir(name)
		if name == "" {
			h.Name = "./"
		}
		if p.opaque[name] {
			h.PAXRecords = map[string]string{paxXattr + overlayOpaque: "y"}
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("write header of %.60q: %w", name, err)
		}
	}
	if err := f.each(r, func(h *tar.Header) error { return p.emit(f, h, r, w) }); err != nil {
		return err
	}
	for _, name := range p.whiteouts {
		if name == lostFound {
			continue // the image is finished with it
		}
		h := &tar.Header{Typeflag: tar.TypeChar, Name: name, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("write header of %.60q: %w", name, err)
		}
	}
	return w.Close()
}

const overlayOpaque = "trusted.overlay.opaque"

func (p *plan) emit(f *filter, h *tar.Header, r io.Reader, w *tar.Writer) error {
	names := p.names[f.entry]
	if len(names) == 0 {
		return nil
	}
	h.Name = names[0]
	if h.Typeflag == tar.TypeDir {
		if p.opaque[h.Name] {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[paxXattr+overlayOpaque] = "y"
		}
		if h.Name += "/"; h.Name == "/" {
			h.Name = "./"
		}
	}
	if err := f.copyEntry(w, h, r); err != nil {
		return err
	}
	for _, name := range names[1:] {
		l := &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: names[0], ModTime: h.ModTime}
		if err := w.WriteHeader(l); err != nil {
			return fmt.Errorf("write header of %.60q: %w", name, err)
		}
	}
	return nil
}
