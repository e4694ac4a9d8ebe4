package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// record is what the store knows of an image beyond its blobs. It is written when all of them are there.
type record struct {
	ID       digest.Digest      `json:"id"`
	Manifest ocispec.Descriptor `json:"manifest"`
	Config   ocispec.Descriptor `json:"config"`
	Platform ocispec.Platform   `json:"platform"`
	Layers   []layerRecord      `json:"layers"`
	Loaded   time.Time          `json:"loaded"`
	Made     bool               `json:"made,omitempty"` // the manifest was made here
}

type layerRecord struct {
	DiffID    digest.Digest `json:"diff_id"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"media_type"`
}

// refRecord gives a name to an image.
type refRecord struct {
	Name     string        `json:"name"`
	ID       digest.Digest `json:"id"`
	Manifest digest.Digest `json:"manifest"` // that the name stood for, an index included
	Updated  time.Time     `json:"updated"`
}

const maxRecord = 4 << 20

func (s *Store) recordPath(id digest.Digest) string {
	return filepath.Join(s.dir, "records", id.Encoded()+".json")
}

func (s *Store) refPath(name string) string {
	return filepath.Join(s.dir, "refs", digest.FromString(name).Encoded()+".json")
}

// readJSON reads a record. A file that is not one gives errs.ErrCorrupt and names itself.
func readJSON(path string, v any, valid func() bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	var data []byte
	if info.Size() <= maxRecord {
		if data, err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(data, v); err != nil || !valid() {
		return fmt.Errorf("record %s cannot be read, remove it and pull or load the image again: %w", path, errs.ErrCorrupt)
	}
	return nil
}

func (s *Store) readRecord(path string) (record, error) {
	var r record
	err := readJSON(path, &r, func() bool {
		for _, l := range r.Layers {
			if checkDigest(l.DiffID) != nil || checkDigest(l.Digest) != nil {
				return false
			}
		}
		return checkDigest(r.ID) == nil && checkDigest(r.Manifest.Digest) == nil && r.Config.Digest == r.ID &&
			filepath.Base(path) == r.ID.Encoded()+".json"
	})
	return r, err
}

func (s *Store) readRef(path string) (refRecord, error) {
	var r refRecord
	err := readJSON(path, &r, func() bool {
		return checkDigest(r.ID) == nil && filepath.Base(path) == digest.FromString(r.Name).Encoded()+".json"
	})
	return r, err
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return fsx.WriteFile(path, append(data, '\n'), 0o600)
}

// save makes an image visible under the names. A blob of it that is not there, because another image that had it was
// removed meanwhile, is errs.ErrNotFound.
func (s *Store) save(ctx context.Context, r record, names []string, target digest.Digest) error {
	if err := s.hasBlobs(ctx, r); err != nil {
		return err
	}
	unlock, err := fsx.Lock(ctx, s.lockPath("records"), true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := writeJSON(s.recordPath(r.ID), r); err != nil {
		return fmt.Errorf("record image %s: %w", r.ID, err)
	}
	for _, name := range names {
		if err := s.writeRef(name, r.ID, target); err != nil {
			return err
		}
	}
	return nil
}

// hasBlobs leases the blobs of an image and finds out whether they are there.
func (s *Store) hasBlobs(ctx context.Context, r record) error {
	for _, d := range r.blobs() {
		if _, err := s.blobs.Info(ctx, d); err != nil {
			return fmt.Errorf("record image %s: %w", r.ID, err)
		}
	}
	return nil
}

// blobs are what an image cannot do without.
func (r record) blobs() []digest.Digest {
	out := []digest.Digest{r.ID, r.Manifest.Digest}
	for _, l := range r.Layers {
		out = append(out, l.Digest)
	}
	return out
}

func (s *Store) writeRef(name string, id, target digest.Digest) error {
	ref := refRecord{Name: name, ID: id, Manifest: target, Updated: time.Now().UTC()}
	if err := writeJSON(s.refPath(name), ref); err != nil {
		return fmt.Errorf("record name %s: %w", name, err)
	}
	return nil
}

// refs returns all names, by image. Records that cannot be read are passed to bad.
func (s *Store) refs(bad func(error)) (map[digest.Digest][]refRecord, error) {
	out := map[digest.Digest][]refRecord{}
	err := s.eachFile("refs", func(path string) {
		r, err := s.readRef(path)
		switch {
		case err == nil:
			out[r.ID] = append(out[r.ID], r)
		case !errors.Is(err, fs.ErrNotExist):
			bad(err)
		}
	})
	for _, refs := range out {
		slices.SortFunc(refs, func(a, b refRecord) int { return strings.Compare(a.Name, b.Name) })
	}
	return out, err
}

func (s *Store) records(bad func(error)) ([]record, error) {
	var out []record
	err := s.eachFile("records", func(path string) {
		r, err := s.readRecord(path)
		switch {
		case err == nil:
			out = append(out, r)
		case !errors.Is(err, fs.ErrNotExist):
			bad(err)
		}
	})
	return out, err
}

func (s *Store) eachFile(sub string, do func(path string)) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, sub))
	if err != nil {
		return fmt.Errorf("list %s: %w", sub, err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") && !strings.HasPrefix(e.Name(), fsx.TempPrefix) {
			do(filepath.Join(s.dir, sub, e.Name()))
		}
	}
	return nil
}

// resolve finds the image a reference means: a name, an ID, or the start of an ID that only one image has. A name wins
// over an ID that looks like it.
func (s *Store) resolve(ref string) (record, error) {
	if ref == "" {
		return record{}, fmt.Errorf("empty image reference: %w", errs.ErrInvalid)
	}
	hex, isID := idPrefix(ref)
	name, nameErr := Normalize(ref)
	if nameErr == nil {
		r, err := s.readRef(s.refPath(name))
		if err == nil {
			return s.recordOf(r)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return record{}, err
		}
	}
	switch {
	case isID:
		return s.resolveID(ref, hex)
	case nameErr != nil:
		return record{}, nameErr
	}
	return s.resolveDigest(ref)
}

func (s *Store) recordOf(r refRecord) (record, error) {
	rec, err := s.readRecord(s.recordPath(r.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("image %s stands for %s, which is not there, pull or load it again: %w", r.Name, r.ID, errs.ErrNotFound)
	}
	return rec, err
}

func (s *Store) resolveID(ref, hex string) (record, error) {
	var found []string
	err := s.eachFile("records", func(path string) {
		if strings.HasPrefix(filepath.Base(path), hex) {
			found = append(found, path)
		}
	})
	if err != nil {
		return record{}, err
	}
	switch len(found) {
	case 0:
		return record{}, fmt.Errorf("image %q, pull or load it first: %w", ref, errs.ErrNotFound)
	case 1:
		return s.readRecord(found[0])
	}
	for i, path := range found {
		found[i] = strings.TrimSuffix(filepath.Base(path), ".json")
	}
	return record{}, fmt.Errorf("image %q may be any of %s, give more digits: %w", ref, strings.Join(found, ", "), errs.ErrInvalid)
}

// resolveDigest finds "repo@sha256:..." by the manifest that another name of the repository stood for.
func (s *Store) resolveDigest(ref string) (record, error) {
	notFound := fmt.Errorf("image %q, pull or load it first: %w", ref, errs.ErrNotFound)
	named, err := parseRef(ref)
	if err != nil {
		return record{}, err
	}
	d, repo := digestOf(named), named.Name()
	if d == "" {
		return record{}, notFound
	}
	all, err := s.refs(func(error) {})
	if err != nil {
		return record{}, err
	}
	for _, refs := range all {
		for _, r := range refs {
			if n, err := parseRef(r.Name); err == nil && n.Name() == repo && r.Manifest == d {
				return s.recordOf(r)
			}
		}
	}
	return record{}, notFound
}

// Get returns the image a reference means: a name, an ID, or the start of an ID (at least 4 digits) that only one image
// has. Errors wrap errs.ErrNotFound, errs.ErrInvalid for a malformed or ambiguous reference (candidates are named), or
// errs.ErrCorrupt for a record that cannot be read.
func (s *Store) Get(ctx context.Context, ref string) (Image, error) {
	_, end, err := s.begin(ctx, false)
	if err != nil {
		return Image{}, err
	}
	defer end()
	rec, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	refs, err := s.refs(func(err error) { s.log.Warn("image name passed over", "err", err) })
	if err != nil {
		return Image{}, err
	}
	return s.image(rec, refs[rec.ID])
}

// List returns all images, newest first. Records that cannot be read are logged and left out; Get reports them.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	_, end, err := s.begin(ctx, false)
	if err != nil {
		return nil, err
	}
	defer end()
	bad := func(err error) { s.log.Warn("image passed over", "err", err) }
	refs, err := s.refs(bad)
	if err != nil {
		return nil, err
	}
	recs, err := s.records(bad)
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, rec := range recs {
		img, err := s.image(rec, refs[rec.ID])
		if err != nil {
			bad(err)
			continue
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		return cmp.Or(b.Loaded.Compare(a.Loaded), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out, nil
}

// image joins a record with its names and its configuration.
func (s *Store) image(rec record, refs []refRecord) (Image, error) {
	data, err := s.blobs.read(rec.ID, s.cfg.Limits.ConfigSize)
	if err != nil {
		return Image{}, fmt.Errorf("configuration of image %s: %w", rec.ID, err)
	}
	cfg, err := parseConfig(data)
	if err != nil {
		return Image{}, fmt.Errorf("configuration of image %s: %w", rec.ID, err)
	}
	img := Image{
		ID: rec.ID, Manifest: rec.Manifest.Digest, Platform: rec.Platform, Config: cfg.Config,
		Healthcheck: cfg.healthcheck, Loaded: rec.Loaded,
	}
	if cfg.Created != nil {
		img.Created = *cfg.Created
	}
	for _, r := range refs {
		img.Names = append(img.Names, r.Name)
	}
	for _, l := range rec.Layers {
		img.Layers = append(img.Layers, LayerInfo(l))
		img.Size += l.Size
	}
	return img, nil
}
