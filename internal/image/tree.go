package image

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// kind is what a name in a layer stands for.
type kind uint8

const (
	kindFile    kind = iota // a regular file, device or fifo
	kindDir                 // a directory
	kindSymlink             // a symbolic link
)

// maxHops bounds the symbolic links followed in one path, as the kernel does.
const maxHops = 40

// inode is one object of a layer; hard links are several nodes with one inode.
type inode struct {
	entry  int // index of the archive entry that made it; -1 for a directory that no entry names
	kind   kind
	target string // of a symbolic link
}

// node is one name of a layer's tree.
type node struct {
	ino      *inode // nil for a whiteout
	children map[string]*node
	opaque   bool // a directory that hides the lower layers' one
	xattrs   bool // a directory whose entry carried extended attributes
}

func (n *node) isDir() bool { return n.ino != nil && n.ino.kind == kindDir }

// tree is the set of names a layer makes. It answers where an entry lands, the way an extraction into an empty directory
// would, and is the only place that follows an archive's symbolic links: nothing is looked up on the host.
type tree struct {
	root    *node
	implied func(name string) error // told of each directory made because an entry below it needs it; may be nil
	names   int                     // nodes made so far
	max     int                     // nodes allowed
}

func newTree(maxNames int) *tree {
	return &tree{root: newDir(-1), max: maxNames}
}

func newDir(entry int) *node {
	return &node{ino: &inode{entry: entry, kind: kindDir}, children: map[string]*node{}}
}

// split turns a name of an archive into its parts. A name that leads out of the layer is refused; an absolute one counts
// from the layer's root.
func split(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("name of %d bytes, at most %d: %w", len(name), maxPath, errs.ErrInvalid)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("name %.60q with a zero byte: %w", name, errs.ErrInvalid)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return nil, fmt.Errorf("name %.60q leads out of the layer: %w", name, errs.ErrInvalid)
	}
	if clean == "." {
		return nil, nil
	}
	parts := strings.Split(clean, "/")
	for _, p := range parts {
		if len(p) > maxName {
			return nil, fmt.Errorf("name %.60q has a part of %d bytes, at most %d: %w", name, len(p), maxName, errs.ErrInvalid)
		}
	}
	return parts, nil
}

// Bounds of names, those of Linux.
const (
	maxPath = 4095
	maxName = 255
)

// dir finds the directory with the given parts, following symbolic links inside the layer. It returns the node and its
// path without links. What is missing is made where create says so; otherwise the node is nil.
func (t *tree) dir(parts []string, create bool) (*node, []string, error) {
	at := []*node{t.root}
	var names []string
	todo := slices.Clone(parts)
	for hops := 0; len(todo) > 0; {
		p := todo[0]
		todo = todo[1:]
		switch p {
		case "", ".":
			continue
		case "..": // only symbolic links bring these
			if len(names) > 0 {
				at, names = at[:len(at)-1], names[:len(names)-1]
			}
			continue
		}
		parent := at[len(at)-1]
		child := parent.children[p]
		if child != nil && child.ino != nil && child.ino.kind == kindSymlink {
			if hops++; hops > maxHops {
				return nil, nil, fmt.Errorf("too many symbolic links in %.60q: %w", strings.Join(parts, "/"), errs.ErrInvalid)
			}
			if strings.HasPrefix(child.ino.target, "/") {
				at, names = at[:1], nil
			}
			todo = append(strings.Split(child.ino.target, "/"), todo...)
			continue
		}
		if child != nil && child.ino != nil && !child.isDir() {
			return nil, nil, fmt.Errorf("%.60q is below %q, which is no directory: %w",
				strings.Join(parts, "/"), strings.Join(append(names, p), "/"), errs.ErrInvalid)
		}
		if !create && (child == nil || child.ino == nil) {
			return nil, nil, nil
		}
		names = append(names, p)
		if child == nil || child.ino == nil {
			made, err := t.imply(parent, names, child != nil)
			if err != nil {
				return nil, nil, err
			}
			child = made
		}
		at = append(at, child)
	}
	return at[len(at)-1], names, nil
}

// imply makes a directory that no entry has named yet. One over a whiteout is opaque.
func (t *tree) imply(parent *node, names []string, overWhiteout bool) (*node, error) {
	d := newDir(-1)
	d.opaque = overWhiteout
	if len(names) > maxPath/2 {
		return nil, fmt.Errorf("directories %d levels deep, at most %d: %w", len(names), maxPath/2, errs.ErrInvalid)
	}
	if err := t.put(parent, names[len(names)-1], d); err != nil {
		return nil, err
	}
	if t.implied == nil {
		return d, nil
	}
	if overWhiteout {
		return nil, errReplan
	}
	return d, t.implied(strings.Join(names, "/"))
}

// put sets a name, replacing what had it.
func (t *tree) put(parent *node, name string, n *node) error {
	if parent.children[name] == nil {
		if t.names++; t.names > t.max {
			return fmt.Errorf("more than %d names in the layer, raise the limit if that is right: %w", t.max, errs.ErrInvalid)
		}
	}
	parent.children[name] = n
	return nil
}

// place is where an entry of an archive lands.
type place struct {
	parent *node
	path   []string // without symbolic links; empty for the root
	name   string   // last part of path
	node   *node    // what has the name now, nil for nothing
}

func (p place) String() string { return strings.Join(p.path, "/") }

// find tells where the entry with the given name lands. The last part is not followed where it is a symbolic link.
func (t *tree) find(name string) (place, error) {
	parts, err := split(name)
	if err != nil {
		return place{}, err
	}
	if len(parts) == 0 {
		return place{node: t.root}, nil
	}
	last := parts[len(parts)-1]
	parent, names, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return place{}, err
	}
	full := append(names, last)
	if n := pathLen(full); n > maxPath {
		return place{}, fmt.Errorf("name %.60q has %d bytes once its links are followed, at most %d: %w", name, n, maxPath, errs.ErrInvalid)
	}
	return place{parent: parent, path: full, name: last, node: parent.children[last]}, nil
}

func pathLen(parts []string) int {
	n := len(parts) - 1
	for _, p := range parts {
		n += len(p)
	}
	return n
}

// lookup finds the inode a hard link names, or nil. It makes nothing.
func (t *tree) lookup(name string) (*inode, error) {
	parts, err := split(name)
	if err != nil || len(parts) == 0 {
		return t.root.ino, err
	}
	last := len(parts) - 1
	parent, _, err := t.dir(parts[:last], false)
	if err != nil || parent == nil || parent.children[parts[last]] == nil {
		return nil, err
	}
	return parent.children[parts[last]].ino, nil
}
