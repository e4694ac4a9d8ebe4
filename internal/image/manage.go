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

// Pruned is what Prune removed.
type Pruned struct {
	Blobs  int   // manifests, configurations and layers, and what broken-off pulls have of them
	Layers int   // layer images
	Bytes  int64 // on disk, of both
}

// Prune removes blobs and layer images that belong to no image. It waits until nothing else uses the store's content, in
// any process, and holds up what comes meanwhile. Layer images that a running machine has open go on working there. A
// record that cannot be read makes it return errs.ErrCorrupt and remove nothing, since what it kept is not known.
func (s *Store) Prune(ctx context.Context) (Pruned, error) {
	ctx, end, err := s.begin(ctx, false)
	if err != nil {
		return Pruned{}, err
	}
	defer end()
	unlock, err := fsx.Lock(ctx, s.lockPath("gc"), true)
	if err != nil {
		return Pruned{}, err
	}
	defer unlock()
	var bad error
	recs, err := s.records(func(err error) { bad = errors.Join(bad, err) })
	if err = errors.Join(err, bad); err != nil {
		return Pruned{}, fmt.Errorf("prune images: %w", err)
	}
	blobs, layers := map[string]bool{}, map[string]bool{}
	for _, r := range recs {
		blobs[r.ID.Encoded()], blobs[r.Manifest.Digest.Encoded()] = true, true
		for _, l := range r.Layers {
			blobs[l.Digest.Encoded()] = true
			if path, err := s.layerPath(l.DiffID); err == nil {
				layers[filepath.Base(path)] = true
			}
		}
	}
	var p Pruned
	n, size, err := sweep(ctx, filepath.Join(s.dir, "blobs", "sha256"), blobs)
	p.Blobs, p.Bytes = n, size
	if err != nil {
		return p, err
	}
	n, size, err = sweep(ctx, filepath.Join(s.dir, "layers"), layers)
	p.Layers, p.Bytes = n, p.Bytes+size
	if err != nil {
		return p, err
	}
	n, size, err = sweep(ctx, filepath.Join(s.dir, "partial"), nil)
	p.Blobs, p.Bytes = p.Blobs+n, p.Bytes+size
	return p, err
}

// sweep removes the files of dir that are not kept.
func sweep(ctx context.Context, dir string, keep map[string]bool) (n int, size int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return n, size, err
		}
		info, err := e.Info()
		if keep[e.Name()] || err != nil || !info.Mode().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return n, size, fmt.Errorf("remove unused content: %w", err)
		}
		n, size = n+1, size+info.Size()
	}
	return n, size, fsx.SyncDir(dir)
}
