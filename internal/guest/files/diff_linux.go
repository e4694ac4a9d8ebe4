package files

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// The limits of one Diff.
const (
	maxChanges   = 100_000
	maxDiffBytes = 512 << 10 // of the paths, so that the reply fits into a frame
)

var errFull = errors.New("enough changes")

// Diff lists the changes in the order of a walk, those after the path after only, "" being all. A directory in which
// something has changed is a change too. Where there are more changes than a reply takes, More is set.
func (l Layer) Diff(ctx context.Context, after string) (api.DiffReply, error) {
	d := differ{layer: l, after: key(after)}
	d.walker = walker{ctx: ctx, dir: l.Upper, visit: d.visit, after: d.leave}
	err := d.walker.walk(".")
	if errors.Is(err, errFull) {
		return api.DiffReply{Changes: d.changes, More: true}, nil
	}
	return api.DiffReply{Changes: d.changes}, err
}

// key makes paths compare in the order of a walk: what is in a directory before what comes after it.
func key(p string) string { return strings.ReplaceAll(p, "/", "\x00") }

type differ struct {
	walker  walker
	layer   Layer
	after   string
	changes []api.Change
	size    int
	parents []string // directories that are changes once something in them is
	hiding  []hiding // opaque directories that the walk is in
}

// hiding is an opaque directory and what it hides that is not in it again, as far as the walk has not passed it.
type hiding struct {
	dir   string
	names []string
}

func (d *differ) visit(e *entry) error {
	dir, base := path.Split(e.path)
	if err := d.deleted(strings.TrimSuffix(dir, "/"), base); err != nil {
		return err
	}
	old, was, err := d.layer.before(e.path)
	if err != nil {
		return err
	}
	switch {
	case e.isWhiteout() && was:
		return d.add(e.path, api.ChangeDeleted)
	case e.isWhiteout():
		return nil
	case d.layer.ours(e):
		return errSkip
	case !was:
		return d.add(e.path, api.ChangeAdded)
	case e.kind() != unix.S_IFDIR || old.Mode&unix.S_IFMT != unix.S_IFDIR:
		return d.add(e.path, api.ChangeModified)
	case isOpaque(e.fd):
		if err := d.add(e.path, api.ChangeModified); err != nil {
			return err
		}
		return d.hide(e.path)
	case old.Mode != e.st.Mode || old.Uid != e.st.Uid || old.Gid != e.st.Gid || old.Mtim != e.st.Mtim && e.path != "etc":
		return d.add(e.path, api.ChangeModified) // the agent makes files in /etc
	}
	d.parents = append(d.parents, e.path)
	return nil
}

// leave forgets a directory.
func (d *differ) leave(dir string) error {
	if err := d.deleted(dir, ""); err != nil {
		return err
	}
	if n := len(d.hiding); n > 0 && d.hiding[n-1].dir == dir {
		d.hiding = d.hiding[:n-1]
	}
	if n := len(d.parents); n > 0 && d.parents[n-1] == dir {
		d.parents = d.parents[:n-1]
	}
	return nil
}

// hide finds out what the image has in an opaque directory and the container has not.
func (d *differ) hide(dir string) error {
	old, err := readNames(d.layer.Image, dir, maxNames)
	if err != nil {
		return err
	}
	now, err := readNames(d.layer.Upper, dir, maxNames)
	if err != nil {
		return err
	}
	old = slices.DeleteFunc(old, func(name string) bool {
		_, again := slices.BinarySearch(now, name)
		return again
	})
	d.hiding = append(d.hiding, hiding{dir, old})
	return nil
}

// deleted adds what an opaque directory hides before a name, or to the end where that is "".
func (d *differ) deleted(dir, until string) error {
	n := len(d.hiding)
	if n == 0 || d.hiding[n-1].dir != dir {
		return nil
	}
	h := &d.hiding[n-1]
	for len(h.names) > 0 && (until == "" || h.names[0] < until) {
		if err := d.add(path.Join(dir, h.names[0]), api.ChangeDeleted); err != nil {
			return err
		}
		h.names = h.names[1:]
	}
	return nil
}

func (d *differ) add(name string, kind api.ChangeKind) error {
	for _, p := range d.parents {
		if err := d.put(p, api.ChangeModified); err != nil {
			return err
		}
	}
	d.parents = d.parents[:0]
	return d.put(name, kind)
}

func (d *differ) put(name string, kind api.ChangeKind) error {
	name = "/" + name
	if d.after != "" && key(name) <= d.after {
		return nil
	}
	// JSON needs up to six bytes for one.
	if d.size += 6*len(name) + 40; len(d.changes) >= maxChanges || d.size > maxDiffBytes+6*unix.PathMax {
		return errFull
	}
	d.changes = append(d.changes, api.Change{Path: name, Kind: kind})
	return nil
}
