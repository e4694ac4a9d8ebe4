package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
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
