package image

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Details is an image with what it takes.
type Details struct {
	Image
	Author  string
	Usage   []LayerUsage // by layer, lowest first
	History []Step       // oldest first

	// DiskSize is what the image takes on disk in bytes: blobs and layer images, each once. SharedSize is the part of it
	// that other images of the store need too.
	DiskSize, SharedSize int64
}

// LayerUsage is what a layer takes.
type LayerUsage struct {
	DiskSize int64 // bytes of the blob and of the layer image, as far as they are there
	Shared   bool  // with another image of the store
}

// Step is a step in the making of an image, by the image's own word.
type Step struct {
	Created   time.Time // zero where it is not known
	CreatedBy string
	Author    string
	Comment   string
	Empty     bool          // it made no layer
	DiffID    digest.Digest // of the layer; "" where it made none
	Size      int64         // of the layer's blob in bytes
}

// Details returns the image a reference means, as Get does, with its history and with what it takes on disk.
func (s *Store) Details(ctx context.Context, ref string) (Details, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return Details{}, err
	}
	ctx, end, err := s.begin(ctx, false)
	if err != nil {
		return Details{}, err
	}
	defer end()
	data, err := s.blobs.read(img.ID, s.cfg.Limits.ConfigSize)
	if err != nil {
		return Details{}, fmt.Errorf("configuration of image %s: %w", img.ID, err)
	}
	cfg, err := parseConfig(data)
	if err != nil {
		return Details{}, fmt.Errorf("configuration of image %s: %w", img.ID, err)
	}
	d := Details{Image: img, Author: cfg.Author, History: steps(cfg.History, img.Layers)}
	return d, s.measure(ctx, &d)
}

// measure finds out what the image takes on disk.
func (s *Store) measure(ctx context.Context, d *Details) error {
	recs, err := s.records(func(error) {})
	if err != nil {
		return err
	}
	others := map[digest.Digest]bool{} // blobs and DiffIDs of other images
	for _, r := range recs {
		if r.ID == d.ID {
			continue
		}
		others[r.Manifest.Digest] = true
		for _, l := range r.Layers {
			others[l.Digest], others[l.DiffID] = true, true
		}
	}
	seen := map[string]bool{}
	add := func(path string, key digest.Digest) int64 {
		size := onDisk(path)
		if !seen[path] {
			seen[path] = true
			d.DiskSize += size
			if others[key] {
				d.SharedSize += size
			}
		}
		return size
	}
	for _, key := range []digest.Digest{d.ID, d.Manifest} {
		if path, err := s.blobs.path(key); err == nil {
			add(path, key)
		}
	}
	for _, l := range d.Layers {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		blob, err := s.blobs.path(l.Digest)
		if err != nil {
			return err
		}
		disk, err := s.layerPath(l.DiffID)
		if err != nil {
			return err
		}
		d.Usage = append(d.Usage, LayerUsage{DiskSize: add(blob, l.Digest) + add(disk, l.DiffID), Shared: others[l.DiffID]})
	}
	return nil
}

// onDisk is what a file takes, or 0 where there is none.
func onDisk(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fsx.Allocated(info)
}

// steps joins the history of a configuration with the layers. Where it does not account for every layer the rest are
// steps of their own.
func steps(history []ocispec.History, layers []LayerInfo) []Step {
	out := make([]Step, 0, len(history))
	next := 0
	take := func(st *Step) {
		st.DiffID, st.Size = layers[next].DiffID, layers[next].Size
		next++
	}
	for _, h := range history {
		st := Step{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil {
			st.Created = *h.Created
		}
		if !h.EmptyLayer && next < len(layers) {
			take(&st)
		}
		out = append(out, st)
	}
	for next < len(layers) {
		var st Step
		take(&st)
		out = append(out, st)
	}
	return out
}
