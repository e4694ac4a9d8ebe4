package image

import (
	"context"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// compressLayers compresses the layers of an image that was made here, so that registries and networks carry less. The image
// keeps its ID and gets another manifest. An image that came with its manifest stays as it is.
func (s *Store) compressLayers(ctx context.Context, rec record) (record, error) {
	if !rec.Made {
		return rec, nil
	}
	layers := make([]layerRecord, len(rec.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Limits.Parallel)
	for i, l := range rec.Layers {
		g.Go(func() error {
			packed, err := s.compressLayer(gctx, l)
			if err != nil {
				return fmt.Errorf("compress layer %d: %w", i, err)
			}
			layers[i] = packed
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return record{}, ctxError(ctx, err)
	}
	same := true
	for i, l := range layers {
		same = same && l == rec.Layers[i]
	}
	if same {
		return rec, nil
	}
	config, err := s.blobs.read(rec.ID, s.cfg.Limits.ConfigSize)
	if err != nil {
		return record{}, err
	}
	next, err := s.writeImage(ctx, config, layers, rec.Platform)
	if err != nil {
		return record{}, err
	}
	next.Loaded = rec.Loaded
	return next, s.replace(ctx, rec, next)
}

// compressLayer compresses a blob that is not. One that is, whatever its media type says, gets the right type.
func (s *Store) compressLayer(ctx context.Context, l layerRecord) (layerRecord, error) {
	r, err := s.openVerified(ctx, l.Digest)
	if err != nil {
		return l, err
	}
	defer func() { _ = r.Close() }()
	if l.MediaType, err = contentType(r.file); err != nil || l.MediaType != ocispec.MediaTypeImageLayer {
		return l, err
	}
	w, err := s.blobs.writer()
	if err != nil {
		return l, err
	}
	defer func() { _ = w.Close() }()
	z := gzip.NewWriter(w)
	if _, err := io.CopyBuffer(struct{ io.Writer }{z}, r, make([]byte, 256<<10)); err != nil {
		return l, err
	}
	if err := z.Close(); err != nil {
		return l, err
	}
	st, err := w.Status()
	if err != nil {
		return l, err
	}
	l.Digest, l.Size, l.MediaType = w.Digest(), st.Offset, ocispec.MediaTypeImageLayerGzip
	return l, w.Commit(ctx, l.Size, l.Digest)
}

// contentType tells by its first bytes what a layer blob is.
func contentType(r io.ReaderAt) (string, error) {
	magic := make([]byte, 4)
	n, err := r.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read layer: %w", err)
	}
	switch magic = magic[:n]; {
	case isGzip(magic):
		return ocispec.MediaTypeImageLayerGzip, nil
	case isZstd(magic):
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}

// replace puts a record in the place of an older one of the same image, unless that has changed meanwhile. Names that
// stood for the old manifest stand for the new one.
func (s *Store) replace(ctx context.Context, old, next record) error {
	unlock, err := fsx.Lock(ctx, s.lockPath("records"), true)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := s.readRecord(s.recordPath(old.ID))
	if err != nil {
		return err
	}
	if now.Manifest.Digest != old.Manifest.Digest {
		return nil // somebody else has: what is pushed is right all the same
	}
	if err := writeJSON(s.recordPath(next.ID), next); err != nil {
		return fmt.Errorf("record image %s: %w", next.ID, err)
	}
	refs, err := s.refs(func(error) {})
	if err != nil {
		return err
	}
	for _, r := range refs[old.ID] {
		if r.Manifest == old.Manifest.Digest {
			if err := s.writeRef(r.Name, r.ID, next.Manifest.Digest); err != nil {
				return err
			}
		}
	}
	return nil
}
