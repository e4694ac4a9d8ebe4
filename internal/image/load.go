package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// LoadOptions tunes Load and LoadStream.
type LoadOptions struct {
	Platform ocispec.Platform // chosen from images for several; the zero value is Config.Platform
	Name     string           // given to the image besides its own names; an error where there are several; "" for none
}

// Load reads images from path: an OCI layout directory, or an archive of one, or an archive as "docker save" writes it,
// compressed with gzip or not. Images that the archive has for other platforms only are passed over where others fit;
// where none does the error wraps errs.ErrUnsupported and names the platforms. A truncated or damaged archive is
// errs.ErrCorrupt, what is no image archive errs.ErrInvalid, a path that does not exist errs.ErrNotFound. After an error
// no image has changed; layers that were whole stay in the store until Prune.
func (s *Store) Load(ctx context.Context, path string, o LoadOptions) ([]Image, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load image: %w (%w)", err, errs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	if info.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, fmt.Errorf("load image: %w", err)
		}
		defer func() { _ = root.Close() }()
		return s.load(ctx, o, path, func(context.Context) (archive, error) { return &layoutDir{s: s, root: root}, nil })
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("load image: %s is neither a file nor a directory, use LoadStream: %w", path, errs.ErrInvalid)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	defer func() { _ = f.Close() }()
	return s.load(ctx, o, path, func(ctx context.Context) (archive, error) { return s.readArchive(ctx, f) })
}

// LoadStream is Load from an archive that r yields. r is read to the archive's end, in the caller's goroutine; a Read
// that blocks is not interrupted by ctx.
func (s *Store) LoadStream(ctx context.Context, r io.Reader, o LoadOptions) ([]Image, error) {
	return s.load(ctx, o, "stream", func(ctx context.Context) (archive, error) { return s.readArchive(ctx, r) })
}

// archive is a source of files by name. Both methods give errs.ErrNotFound for one it has not.
type archive interface {
	read(name string, limit int64) ([]byte, error)
	// keep puts a file into the store. digest and size are "" and -1 where they are not known beforehand.
	keep(ctx context.Context, name string, want digest.Digest, size int64) (digest.Digest, int64, error)
	close() error
}

func (s *Store) load(ctx context.Context, o LoadOptions, from string, open func(context.Context) (archive, error)) ([]Image, error) {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return nil, err
	}
	defer end()
	images, err := s.loadFrom(ctx, o, open)
	if err != nil {
		return nil, fmt.Errorf("load image from %s: %w", from, err)
	}
	return images, nil
}

// loaded is an image of an archive, with its manifest in the store and its layers not yet.
type loaded struct {
	rec    record
	names  []string
	target digest.Digest
	files  []string // of the layers, in the archive
}

func (s *Store) loadFrom(ctx context.Context, o LoadOptions, open func(context.Context) (archive, error)) ([]Image, error) {
	if o.Platform.OS == "" && o.Platform.Architecture == "" {
		o.Platform = s.cfg.Platform
	}
	a, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.close() }()
	found, err := s.scan(ctx, a, o.Platform)
	if err != nil {
		return nil, err
	}
	if o.Name != "" {
		name, err := Normalize(o.Name)
		if err != nil {
			return nil, err
		}
		if len(found) > 1 {
			return nil, fmt.Errorf("archive has %d images and cannot be named %q: %w", len(found), o.Name, errs.ErrInvalid)
		}
		found[0].names = append(found[0].names, name)
	}
	for i := range found {
		if err := s.keepLayers(ctx, a, &found[i]); err != nil {
			return nil, err
		}
	}
	var out []Image
	for _, l := range found {
		if err := s.save(ctx, l.rec, l.names, l.target); err != nil {
			return nil, err
		}
	}
	for _, l := range found {
		refs, err := s.refs(func(error) {})
		if err != nil {
			return nil, err
		}
		img, err := s.image(l.rec, refs[l.rec.ID])
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

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

// keepLayers brings the layers of an image into the store and makes their images.
func (s *Store) keepLayers(ctx context.Context, a archive, l *loaded) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Limits.Parallel)
	for i := range l.rec.Layers {
		g.Go(func() error {
			layer := &l.rec.Layers[i]
			d, size, err := a.keep(gctx, l.files[i], layer.Digest, layer.Size)
			if err != nil {
				return fmt.Errorf("layer %d: %w", i, incomplete(err))
			}
			layer.Digest, layer.Size = d, size
			if _, err := s.ensureLayer(gctx, LayerInfo(*layer)); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	return g.Wait()
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
	l.names, l.files = names, img.Layers
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
