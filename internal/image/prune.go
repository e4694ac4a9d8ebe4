package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/opencontainers/go-digest"
)

// PruneOptions says what Prune removes besides the content that belongs to no image. An image that somebody uses is never
// removed. The zero value removes images that have no name.
type PruneOptions struct {
	// Keep keeps all images, with a name or without.
	Keep bool
	// All removes images that have a name too.
	All bool
	// Unused removes only what has been in the store for that long and was not used meanwhile. 0 is any time.
	Unused time.Duration
	// Labels removes only images that have all of them, as "key" or "key=value".
	Labels []string
	// Budget is how many bytes the store may take on disk. Of the images that may go, those that were used longest ago
	// go first, and only as many as must. 0 is no budget: all go. It is not exact: what operations under way need and
	// images that may not go are more than the budget where they are.
	Budget int64
	// LayerImages removes the layer images of all images that nobody uses: they are made again from the blobs.
	LayerImages bool
}

func (o PruneOptions) check() error {
	switch {
	case o.Unused < 0:
		return fmt.Errorf("prune of what was not used for %s: use a positive duration, or 0 for any time: %w", o.Unused, errs.ErrInvalid)
	case o.Budget < 0:
		return fmt.Errorf("prune to a budget of %d bytes: use a positive number, or 0 for none: %w", o.Budget, errs.ErrInvalid)
	case o.Keep && (o.All || o.Unused != 0 || len(o.Labels) > 0 || o.Budget != 0):
		return fmt.Errorf("prune that keeps all images and says which go: %w", errs.ErrInvalid)
	}
	for _, l := range o.Labels {
		if key, _, _ := strings.Cut(l, "="); key == "" {
			return fmt.Errorf("label %.100q has no key: use key or key=value: %w", l, errs.ErrInvalid)
		}
	}
	return nil
}

// Pruned is what Prune removed.
type Pruned struct {
	Images []Image
	Blobs  int   // manifests, configurations and layers, and what broken-off pulls have of them
	Layers int   // layer images
	Bytes  int64 // on disk, of both
}

// Prune removes images as the options say, then blobs and layer images that belong to no image and that no operation needs
// which is under way in any process: it waits for none of these, and holds others up only while it removes files. A record
// that cannot be read makes it return errs.ErrCorrupt and remove nothing, since what it kept is not known.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	if err := o.check(); err != nil {
		return Pruned{}, err
	}
	ctx, end, err := s.begin(ctx, false)
	if err != nil {
		return Pruned{}, err
	}
	defer end()
	p, err := s.prune(ctx, o)
	if err != nil {
		return p, fmt.Errorf("prune images: %w", err)
	}
	return p, nil
}

func (s *Store) prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	// In this order: who has the records' lock takes no lease.
	for _, name := range []string{"gc", "records"} {
		unlock, err := fsx.Lock(ctx, s.lockPath(name), true)
		if err != nil {
			return Pruned{}, err
		}
		defer unlock()
	}
	// Leases before records: what was leased and is not any more has its record by then.
	leased, err := s.blobs.leased(ctx)
	if err != nil {
		return Pruned{}, err
	}
	if err := s.sweepUses(ctx); err != nil {
		return Pruned{}, err
	}
	inv, err := s.inventory(ctx)
	if err != nil {
		return Pruned{}, err
	}
	var p Pruned
	for _, rec := range s.victims(inv, o) {
		img, err := s.image(rec.record, rec.refs)
		if err != nil { // it goes all the same
			img = Image{ID: rec.ID, Manifest: rec.Manifest.Digest, Platform: rec.Platform}
		}
		if err := s.removeRecord(rec); err != nil {
			return p, err
		}
		inv.remove(rec.ID)
		p.Images = append(p.Images, img)
	}
	if err := s.sweep(ctx, inv, leased, o.LayerImages, &p); err != nil {
		return p, err
	}
	return p, s.sweepLocks()
}

// sweepLocks removes the locks on blobs and layers of processes that died.
func (s *Store) sweepLocks() error {
	for _, kind := range []string{"blob-*", "layer-*"} {
		paths, err := filepath.Glob(s.lockPath(kind))
		if err != nil {
			return fmt.Errorf("list locks: %w", err)
		}
		for _, path := range paths {
			unlock, err := fsx.TryLock(path, true)
			if err != nil {
				continue // somebody has it
			}
			err = os.Remove(path)
			unlock()
			if err != nil {
				return fmt.Errorf("remove lock of a dead process: %w", err)
			}
		}
	}
	return nil
}

// removeRecord removes the names of an image and then the image.
func (s *Store) removeRecord(rec *known) error {
	for _, r := range rec.refs {
		if err := s.removeFile(s.refPath(r.Name)); err != nil {
			return err
		}
	}
	return s.removeFile(s.recordPath(rec.ID))
}

// known is an image with all that is known of it.
type known struct {
	record
	refs     []refRecord
	users    []User
	lastUsed time.Time
}

// inventory is all that the store has.
type inventory struct {
	images []*known // those that were used longest ago first
	// Size on disk of the files, by name.
	blobs, layers, partial map[string]int64
}

// inventory reads everything. The caller holds the lock of the records. A record that cannot be read is an error.
func (s *Store) inventory(ctx context.Context) (*inventory, error) {
	var bad error
	recs, err := s.records(func(err error) { bad = errors.Join(bad, err) })
	if err = errors.Join(err, bad); err != nil {
		return nil, err
	}
	refs, err := s.refs(func(err error) { s.log.Warn("image name passed over", "err", err) })
	if err != nil {
		return nil, err
	}
	users, err := s.users(ctx)
	if err != nil {
		return nil, err
	}
	inv := &inventory{}
	for _, r := range recs {
		k := &known{record: r, refs: refs[r.ID], users: users[r.ID], lastUsed: r.Loaded}
		if info, err := os.Stat(s.recordPath(r.ID)); err == nil && info.ModTime().After(k.lastUsed) {
			k.lastUsed = info.ModTime()
		}
		inv.images = append(inv.images, k)
	}
	slices.SortFunc(inv.images, func(a, b *known) int {
		return cmp.Or(a.lastUsed.Compare(b.lastUsed), strings.Compare(string(a.ID), string(b.ID)))
	})
	for dir, to := range map[string]*map[string]int64{
		filepath.Join("blobs", "sha256"): &inv.blobs, "layers": &inv.layers, "partial": &inv.partial,
	} {
		if *to, err = fileSizes(filepath.Join(s.dir, dir)); err != nil {
			return nil, err
		}
	}
	return inv, nil
}

// fileSizes returns what the regular files of a directory take on disk.
func fileSizes(dir string) (map[string]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	out := make(map[string]int64, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			out[e.Name()] = fsx.Allocated(info)
		}
	}
	return out, nil
}

func (inv *inventory) remove(id digest.Digest) {
	inv.images = slices.DeleteFunc(inv.images, func(k *known) bool { return k.ID == id })
}

// victims are the images that the options let go, in the order in which they go.
func (s *Store) victims(inv *inventory, o PruneOptions) []*known {
	if o.Keep {
		return nil
	}
	var out []*known
	now := time.Now()
	for _, k := range inv.images {
		switch {
		case len(k.users) > 0, len(k.refs) > 0 && !o.All, now.Sub(k.lastUsed) < o.Unused, !s.hasLabels(k, o.Labels):
		default:
			out = append(out, k)
		}
	}
	if o.Budget == 0 {
		return out
	}
	left := &inventory{images: slices.Clone(inv.images), blobs: inv.blobs, layers: inv.layers}
	for i, k := range out {
		if left.total(s) <= o.Budget {
			return out[:i]
		}
		left.remove(k.ID)
	}
	return out
}

func (s *Store) hasLabels(k *known, labels []string) bool {
	if len(labels) == 0 {
		return true
	}
	img, err := s.image(k.record, nil)
	return err == nil && !slices.ContainsFunc(labels, func(l string) bool {
		key, want, exact := strings.Cut(l, "=")
		has, ok := img.Config.Labels[key]
		return !ok || exact && has != want
	})
}

// needed are the names of the files that the images need. Those of layer images are needed by users only where less says so.
func (inv *inventory) needed(s *Store, less bool) (blobs, layers map[string]bool) {
	blobs, layers = map[string]bool{}, map[string]bool{}
	for _, k := range inv.images {
		for _, d := range k.record.blobs() {
			blobs[d.Encoded()] = true
		}
		for _, l := range k.Layers {
			if path, err := s.layerPath(l.DiffID); err == nil && (!less || len(k.users) > 0) {
				layers[filepath.Base(path)] = true
			}
		}
	}
	return blobs, layers
}

// total is what the images take on disk, each file once.
func (inv *inventory) total(s *Store) int64 {
	blobs, layers := inv.needed(s, false)
	return sum(inv.blobs, blobs) + sum(inv.layers, layers)
}

func sum(sizes map[string]int64, of map[string]bool) (total int64) {
	for name := range of {
		total += sizes[name]
	}
	return total
}

// sweep removes the files that nobody needs.
func (s *Store) sweep(ctx context.Context, inv *inventory, leased map[string]bool, less bool, p *Pruned) error {
	blobs, layers := inv.needed(s, less)
	for _, dir := range []struct {
		name   string
		files  map[string]int64
		needed map[string]bool
		count  *int
	}{
		{filepath.Join("blobs", "sha256"), inv.blobs, blobs, &p.Blobs},
		{"layers", inv.layers, layers, &p.Layers},
		{"partial", inv.partial, nil, &p.Blobs},
	} {
		for _, name := range slices.Sorted(maps.Keys(dir.files)) {
			hex, _, _ := strings.Cut(name, "-") // of a layer image: the converter's version follows
			if dir.needed[name] || leased[hex] {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := os.Remove(filepath.Join(s.dir, dir.name, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove unused content: %w", err)
			}
			*dir.count, p.Bytes = *dir.count+1, p.Bytes+dir.files[name]
		}
		if err := fsx.SyncDir(filepath.Join(s.dir, dir.name)); err != nil {
			return err
		}
	}
	return nil
}
