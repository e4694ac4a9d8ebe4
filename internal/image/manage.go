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

// Remove takes a name from its image; with the last one the image goes too. Given an ID, or the start of one, it removes
// the image and its name; where it has several names that is errs.ErrInUse unless force is set. Content stays on disk
// until Prune, so whatever uses the image goes on working. A name whose record is corrupt is removed too.
func (s *Store) Remove(ctx context.Context, ref string, force bool) error {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return err
	}
	defer end()
	unlock, err := fsx.Lock(ctx, s.lockPath("records"), true)
	if err != nil {
		return err
	}
	defer unlock()
	name, nameErr := Normalize(ref)
	rec, err := s.resolve(ref)
	if nameErr == nil && errors.Is(err, errs.ErrCorrupt) {
		return s.removeFile(s.refPath(name))
	}
	if err != nil {
		return err
	}
	refs, err := s.refs(func(err error) { s.log.Warn("image name passed over", "err", err) })
	if err != nil {
		return err
	}
	names := refs[rec.ID]
	for _, r := range names {
		if nameErr == nil && r.Name == name {
			return s.removeName(rec, r, len(names) == 1)
		}
	}
	if len(names) > 1 && !force {
		list := make([]string, len(names))
		for i, r := range names {
			list[i] = r.Name
		}
		return fmt.Errorf("image %s has the names %s, remove those or force it: %w", rec.ID, strings.Join(list, ", "), errs.ErrInUse)
	}
	for _, r := range names {
		if err := s.removeName(rec, r, false); err != nil {
			return err
		}
	}
	return s.removeFile(s.recordPath(rec.ID))
}

func (s *Store) removeName(rec record, r refRecord, last bool) error {
	if err := s.removeFile(s.refPath(r.Name)); err != nil || !last {
		return err
	}
	return s.removeFile(s.recordPath(rec.ID))
}

func (s *Store) removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return fsx.SyncDir(filepath.Dir(path))
}
