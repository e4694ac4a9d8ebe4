package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// scan finds the images of an archive that run on the platform. An archive of both kinds is taken as an OCI layout,
// unless that has no names and the Docker manifest does.
func (s *Store) scan(ctx context.Context, a archive, want ocispec.Platform) ([]loaded, error) {
	data, err := a.read(ocispec.ImageIndexFile, s.cfg.Limits.ManifestSize)
	if err == nil {
		return s.scanLayout(ctx, a, data, want)
	}
	if !errors.Is(err, errs.ErrNotFound) {
		return nil, err
	}
	data, err = a.read("manifest.json", s.cfg.Limits.ManifestSize)
	if errors.Is(err, errs.ErrNotFound) {
		return nil, fmt.Errorf("neither index.json nor manifest.json is there, so it is no image archive: %w", errs.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	return s.scanDocker(ctx, a, data, want)
}

const (
	containerdName = "io.containerd.image.name"
	maxDepth       = 4 // of indexes in indexes
)

func (s *Store) scanLayout(ctx context.Context, a archive, data []byte, want ocispec.Platform) ([]loaded, error) {
	index, err := parseDocument(data, s.cfg.Limits)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if !index.isIndex() || len(index.Manifests) == 0 {
		return nil, fmt.Errorf("index.json lists no image: %w", errs.ErrInvalid)
	}
	var out []loaded
	var wrong error
	for _, m := range index.Manifests {
		l, err := s.scanManifest(ctx, a, m, want, maxDepth)
		if isPlatform(err) {
			wrong = errors.Join(wrong, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		l.names, l.target = layoutNames(m), m.Digest
		out = append(out, *l)
	}
	if len(out) == 0 {
		return nil, wrong
	}
	return merge(out), nil
}

// layoutNames returns the names of an entry of index.json: containerd's annotation is a full reference, the one of OCI
// often a bare tag, which names nothing.
func layoutNames(m ocispec.Descriptor) []string {
	if name, err := Normalize(m.Annotations[containerdName]); err == nil {
		return []string{name}
	}
	ref := m.Annotations[ocispec.AnnotationRefName]
	if !isReference(ref) {
		return nil
	}
	if name, err := Normalize(ref); err == nil {
		return []string{name}
	}
	return nil
}

// merge joins entries that are one image under several names.
func merge(in []loaded) []loaded {
	var out []loaded
	at := map[digest.Digest]int{}
	for _, l := range in {
		if i, ok := at[l.rec.ID]; ok {
			out[i].names = append(out[i].names, l.names...)
			continue
		}
		at[l.rec.ID] = len(out)
		out = append(out, l)
	}
	return out
}

// scanManifest follows a descriptor to the manifest for the platform and keeps manifest and configuration.
func (s *Store) scanManifest(ctx context.Context, a archive, m ocispec.Descriptor, want ocispec.Platform, depth int) (*loaded, error) {
	data, err := readBlob(a, m.Digest, s.cfg.Limits.ManifestSize)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	doc, err := parseDocument(data, s.cfg.Limits)
	if err != nil {
		return nil, err
	}
	if doc.isIndex() {
		if depth == 0 {
			return nil, fmt.Errorf("index of indexes, more than %d deep: %w", maxDepth, errs.ErrInvalid)
		}
		next, err := choose(doc.Manifests, want)
		if err != nil {
			return nil, err
		}
		return s.scanManifest(ctx, a, next, want, depth-1)
	}
	config, err := readBlob(a, doc.Config.Digest, s.cfg.Limits.ConfigSize)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return s.keepManifest(ctx, data, doc, config, want)
}

func (s *Store) keepManifest(ctx context.Context, data []byte, doc *document, config []byte, want ocispec.Platform) (*loaded, error) {
	rec, err := parseImage(describe(data, doc), doc, config, want)
	if err != nil {
		return nil, err
	}
	for _, blob := range [][]byte{config, data} {
		if _, err := s.blobs.write(ctx, blob); err != nil {
			return nil, err
		}
	}
	rec.Loaded = time.Now().UTC()
	l := &loaded{rec: rec, target: rec.Manifest.Digest}
	for _, layer := range rec.Layers {
		l.files = append(l.files, blobName(layer.Digest))
	}
	return l, nil
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// dockerImage is an entry of the manifest.json of a Docker archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Store) scanDocker(ctx context.Context, a archive, data []byte, want ocispec.Platform) ([]loaded, error) {
	var images []dockerImage
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fmt.Errorf("manifest.json: %w (%w)", err, errs.ErrInvalid)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("manifest.json lists no image: %w", errs.ErrInvalid)
	}
	var out []loaded
	var wrong error
	for _, img := range images {
		l, err := s.scanDockerImage(ctx, a, img, want)
		if isPlatform(err) {
			wrong = errors.Join(wrong, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, *l)
	}
	if len(out) == 0 {
		return nil, wrong
	}
	return merge(out), nil
}

// scanDockerImage makes an OCI manifest for an image of a Docker archive, which has none.
func (s *Store) scanDockerImage(ctx context.Context, a archive, img dockerImage, want ocispec.Platform) (*loaded, error) {
	if len(img.Layers) > s.cfg.Limits.Layers {
		return nil, fmt.Errorf("image with %d layers, at most %d: %w", len(img.Layers), s.cfg.Limits.Layers, errs.ErrInvalid)
	}
	var names []string
	for _, tag := range img.RepoTags {
		name, err := Normalize(tag)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: %w", err)
		}
		names = append(names, name)
	}
	config, err := a.read(img.Config, s.cfg.Limits.ConfigSize)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", incomplete(err))
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{},
	}
	for i, name := range img.Layers {
		d, size, err := a.keep(ctx, name, "", -1)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, incomplete(err))
		}
		// Whether it is compressed the store sees for itself; archives have it plain.
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("make manifest: %w", err)
	}
	doc, err := parseDocument(data, s.cfg.Limits)
	if err != nil {
		return nil, err
	}
	l, err := s.keepManifest(ctx, data, doc, config, want)
	if err != nil {
		return nil, err
	}
	l.names, l.files, l.rec.Made = names, img.Layers, true
	return l, nil
}

// readBlob reads a file named by its digest and verifies it.
func readBlob(a archive, d digest.Digest, limit int64) ([]byte, error) {
	data, err := a.read(blobName(d), limit)
	if err != nil {
		return nil, incomplete(err)
	}
	if got := digest.FromBytes(data); got != d {
		return nil, fmt.Errorf("content has digest %s instead of %s: %w", got, d, errs.ErrCorrupt)
	}
	return data, nil
}

// incomplete makes of a file that an archive should have and has not what it is: damage of the archive.
func incomplete(err error) error {
	if errors.Is(err, errs.ErrNotFound) {
		return fmt.Errorf("archive is not complete: %v (%w)", err, errs.ErrCorrupt)
	}
	return err
}
