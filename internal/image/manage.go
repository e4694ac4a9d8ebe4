package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

func digestOf(n reference.Named) digest.Digest {
	if d, ok := n.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

// Tag gives an image one more name, taking it from the image that had it. A name with a digest is errs.ErrInvalid.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return err
	}
	defer end()
	named, err := parseRef(name)
	if err != nil {
		return err
	}
	if digestOf(named) != "" {
		return fmt.Errorf("tag %q has a digest: %w", name, errs.ErrInvalid)
	}
	unlock, err := fsx.Lock(ctx, s.lockPath("records"), true)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.resolve(ref)
	if err != nil {
		return err
	}
	return s.writeRef(named.String(), rec.ID, rec.Manifest.Digest)
}

// RemoveOptions tunes Remove.
type RemoveOptions struct {
	Force bool // removes an image by ID though it has several names, and one that somebody uses who does not run
}

// Removed is what Remove removed.
type Removed struct {
	Names []string // taken from the image
	Image Image    // that had them, as it was before
	Gone  bool     // the image went too
}

// Remove takes a name from its image; with the last one the image goes too. Given an ID, or the start of one, it removes
// the image and its name; where it has several names that is errs.ErrInUse unless Force is set. An image that somebody
// uses, in any process, is errs.ErrInUse too, and stays; with Force, where a user runs. Content stays on disk until Prune. A name whose record is corrupt is removed too.
func (s *Store) Remove(ctx context.Context, ref string, o RemoveOptions) (Removed, error) {
	return s.remove(ctx, ref, func(ctx context.Context, rec record, names []refRecord, name string) (Removed, error) {
		for _, r := range names {
			if r.Name == name {
				return s.drop(ctx, rec, names, []refRecord{r}, len(names) == 1, o)
			}
		}
		if len(names) > 1 && !o.Force {
			list := make([]string, len(names))
			for i, r := range names {
				list[i] = r.Name
			}
			return Removed{}, fmt.Errorf("image %s has the names %s, remove those or force it: %w", rec.ID, strings.Join(list, ", "), errs.ErrInUse)
		}
		return s.drop(ctx, rec, names, names, true, o)
	})
}

// Untag takes a name from its image, which stays, without a name where that was the last. An ID is errs.ErrInvalid. A name
// whose record is corrupt is removed too.
func (s *Store) Untag(ctx context.Context, name string) (Removed, error) {
	return s.remove(ctx, name, func(ctx context.Context, rec record, names []refRecord, full string) (Removed, error) {
		for _, r := range names {
			if r.Name == full {
				return s.drop(ctx, rec, names, []refRecord{r}, false, RemoveOptions{})
			}
		}
		return Removed{}, fmt.Errorf("%q is no name of image %s: %w", name, rec.ID, errs.ErrInvalid)
	})
}

// remove finds what a reference means and calls do with it, its names, and the reference in full, or "" where it cannot
// be a name. Nobody else changes records meanwhile.
func (s *Store) remove(ctx context.Context, ref string, do func(context.Context, record, []refRecord, string) (Removed, error)) (Removed, error) {
	ctx, end, err := s.beginRecords(ctx, true, true)
	if err != nil {
		return Removed{}, err
	}
	defer end()
	name, nameErr := Normalize(ref)
	rec, err := s.resolve(ref)
	if nameErr == nil && errors.Is(err, errs.ErrCorrupt) {
		return Removed{Names: []string{name}}, s.removeFile(s.refPath(name))
	}
	if err != nil {
		return Removed{}, err
	}
	refs, err := s.refs(func(err error) { s.log.Warn("image name passed over", "err", err) })
	if err != nil {
		return Removed{}, err
	}
	return do(ctx, rec, refs[rec.ID], name)
}

// drop removes names of an image, and the image where gone says so.
func (s *Store) drop(ctx context.Context, rec record, all, names []refRecord, gone bool, o RemoveOptions) (Removed, error) {
	img, err := s.image(rec, all)
	if err != nil { // it can be removed all the same
		img = Image{ID: rec.ID, Manifest: rec.Manifest.Digest, Platform: rec.Platform}
	}
	if gone {
		if err := s.checkUnused(ctx, rec.ID, o.Force); err != nil {
			return Removed{}, err
		}
	}
	out := Removed{Image: img}
	for _, r := range names {
		if err := s.removeFile(s.refPath(r.Name)); err != nil {
			return out, err
		}
		out.Names = append(out.Names, r.Name)
	}
	if !gone {
		return out, nil
	}
	out.Gone = true
	return out, s.removeFile(s.recordPath(rec.ID))
}

func (s *Store) removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return fsx.SyncDir(filepath.Dir(path))
}
