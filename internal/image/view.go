package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
)

// view looks up names in layers that lie one above another, as overlayfs will show them.
type view struct {
	files   []*os.File
	volumes []*ext4.Volume // lowest first
}

// push puts a layer on top.
func (v *view) push(ctx context.Context, s *Store, l LayerInfo) error {
	disk, err := s.ensureLayer(ctx, l)
	if err != nil {
		return err
	}
	f, err := os.Open(disk.Path)
	if err != nil {
		return fmt.Errorf("open layer image: %w", err)
	}
	v.files = append(v.files, f)
	vol, err := ext4.Open(f)
	if err != nil {
		return fmt.Errorf("layer image %s: %w", disk.Path, err)
	}
	v.volumes = append(v.volumes, vol)
	return nil
}

func (v *view) close() {
	for _, f := range v.files {
		_ = f.Close()
	}
}

// found is a name of a view.
type found struct {
	*ext4.Inode
	volume *ext4.Volume
	// dirs are the directories that are merged into this one, the highest first.
	dirs []found
}

// root is the directory at the top of all layers. It is nil where there is no layer.
func (v *view) root() (*found, error) {
	var dirs []found
	for i := len(v.volumes) - 1; i >= 0; i-- {
		n, err := v.volumes[i].Root()
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, found{Inode: n, volume: v.volumes[i]})
		if opaque, err := isOpaque(dirs[len(dirs)-1]); opaque || err != nil {
			return merged(dirs), err
		}
	}
	return merged(dirs), nil
}

func merged(dirs []found) *found {
	if len(dirs) == 0 {
		return nil
	}
	top := dirs[0]
	top.dirs = dirs
	return &top
}

func isOpaque(f found) (bool, error) {
	attrs, err := f.volume.Attrs(f.Inode)
	return attrs[overlayOpaque] == "y", err
}

// child finds a name in a directory, or returns nil.
func (f *found) child(name string) (*found, error) {
	var dirs []found
	for _, d := range f.dirs {
		n, err := d.volume.Lookup(d.Inode, name)
		if errors.Is(err, errs.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		at := found{Inode: n, volume: d.volume}
		if n.Type() != ext4.TypeDir {
			if len(dirs) == 0 && !n.Whiteout() {
				return &at, nil
			}
			break
		}
		dirs = append(dirs, at)
		if opaque, err := isOpaque(at); err != nil {
			return nil, err
		} else if opaque {
			break
		}
	}
	return merged(dirs), nil
}

// resolve follows the symbolic links of a directory's path. It returns the path without them and what is there: for each
// part a directory, or nil from the first part on that no layer has.
func (v *view) resolve(name string) (real []string, dirs []*found, err error) {
	root, err := v.root()
	if err != nil {
		return nil, nil, err
	}
	at := []*found{root}
	todo := strings.Split(name, "/")
	for hops := 0; len(todo) > 0; {
		p := todo[0]
		todo = todo[1:]
		switch p {
		case "", ".":
			continue
		case "..":
			if len(real) > 0 {
				real, at = real[:len(real)-1], at[:len(at)-1]
			}
			continue
		}
		var next *found
		if here := at[len(at)-1]; here != nil {
			if next, err = here.child(p); err != nil {
				return nil, nil, err
			}
		}
		if next != nil && next.Type() == ext4.TypeSymlink {
			if hops++; hops > maxHops {
				return nil, nil, fmt.Errorf("too many symbolic links in %.60q: %w", name, errs.ErrInvalid)
			}
			target, err := next.volume.Link(next.Inode)
			if err != nil {
				return nil, nil, err
			}
			if path.IsAbs(target) {
				real, at = nil, at[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		if next != nil && next.Type() != ext4.TypeDir {
			return nil, nil, fmt.Errorf("%.60q is below %q, which the layers under it have as a file: %w", name, path.Join(append(real, p)...), errs.ErrInvalid)
		}
		real, at = append(real, p), append(at, next)
	}
	return real, at[1:], nil
}
