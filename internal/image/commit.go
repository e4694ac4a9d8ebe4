package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions tunes Commit. The zero value makes an image without a name that runs as its base does.
type CommitOptions struct {
	Names     []string                   // given to the image, taken from those that had them
	Change    func(*ocispec.ImageConfig) // changes the base's configuration; nil is none
	Author    string                     // "" is nobody
	Comment   string                     // of the new entry of the history
	CreatedBy string                     // the command that made the layer, of the same
}

// Commit makes an image of another one and one more layer, an archive with OCI whiteouts that is compressed or not. The
// blob is kept as it comes: a container's layer uncompressed, since compressing costs more than the disk it saves, and a
// registry may get it compressed. What Commit does not know of the configuration stays as it is.
//
// layer is read in the caller's goroutine; a Read that blocks is not interrupted by ctx, and its error ends the commit. A
// layer that is no archive is errs.ErrCorrupt, a base that is not in the store errs.ErrNotFound, a bad name, or more
// layers than Limits allow, errs.ErrInvalid. After an error no image has changed.
func (s *Store) Commit(ctx context.Context, base Image, layer io.Reader, o CommitOptions) (Image, error) {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return Image{}, err
	}
	defer end()
	img, err := s.commit(ctx, base, layer, o)
	if err != nil {
		return Image{}, fmt.Errorf("commit on image %s: %w", base.ID, err)
	}
	return img, nil
}

func (s *Store) commit(ctx context.Context, base Image, layer io.Reader, o CommitOptions) (Image, error) {
	names, err := newNames(o.Names)
	if err != nil {
		return Image{}, err
	}
	rec, err := s.resolve(base.ID.String())
	if err != nil {
		return Image{}, err
	}
	if n := len(rec.Layers) + 1; n > s.cfg.Limits.Layers {
		return Image{}, fmt.Errorf("image would have %d layers, at most %d: %w", n, s.cfg.Limits.Layers, errs.ErrInvalid)
	}
	config, err := s.blobs.read(rec.ID, s.cfg.Limits.ConfigSize)
	if err != nil {
		return Image{}, err
	}
	added, err := s.keepLayer(ctx, layer)
	if err != nil {
		return Image{}, err
	}
	change := configChange{change: o.Change, layers: []digest.Digest{added.DiffID}, author: o.Author, created: time.Now().UTC()}
	change.history = []ocispec.History{change.entry(o.CreatedBy, o.Comment)}
	if config, err = change.apply(config); err != nil {
		return Image{}, err
	}
	next, err := s.writeImage(ctx, config, append(rec.Layers[:len(rec.Layers):len(rec.Layers)], added), rec.Platform)
	if err != nil {
		return Image{}, err
	}
	return s.publish(ctx, next, names)
}

// keepLayer brings a layer whose digest is not known into the store and makes its image.
func (s *Store) keepLayer(ctx context.Context, layer io.Reader) (layerRecord, error) {
	w, err := s.blobs.writer()
	if err != nil {
		return layerRecord{}, err
	}
	defer func() { _ = w.Close() }()
	src := &source{ctx: ctx, r: io.LimitReader(layer, s.cfg.Limits.BlobSize+1)}
	n, err := io.Copy(struct{ io.Writer }{w}, src)
	if err != nil {
		return layerRecord{}, fmt.Errorf("keep layer: %w", err)
	}
	if n > s.cfg.Limits.BlobSize {
		return layerRecord{}, fmt.Errorf("layer has more than %d bytes: %w", s.cfg.Limits.BlobSize, errs.ErrInvalid)
	}
	l := layerRecord{Digest: w.Digest(), Size: n, MediaType: ocispec.MediaTypeImageLayer}
	if err := w.Commit(ctx, n, l.Digest); err != nil {
		return layerRecord{}, err
	}
	if l.DiffID, l.MediaType, err = s.diffID(ctx, l.Digest); err != nil {
		return layerRecord{}, err
	}
	_, err = s.ensureLayer(ctx, LayerInfo(l))
	return l, err
}

// diffID finds out what a blob is uncompressed.
func (s *Store) diffID(ctx context.Context, d digest.Digest) (_ digest.Digest, mediaType string, err error) {
	r, err := s.blobs.reader(d)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = r.Close() }()
	c, err := openContent(ctx, r, s.cfg.Limits)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.body.Close() }()
	if _, err := io.Copy(io.Discard, c); err != nil {
		return "", "", damaged(c.src, err)
	}
	got := digest.NewDigest(digest.SHA256, c.hash)
	if got == d {
		return got, ocispec.MediaTypeImageLayer, nil
	}
	mediaType, err = contentType(r)
	return got, mediaType, err
}

// writeImage stores the configuration and the manifest of an image and returns its record.
func (s *Store) writeImage(ctx context.Context, config []byte, layers []layerRecord, platform ocispec.Platform) (record, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ociType(l.MediaType), Digest: l.Digest, Size: l.Size})
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return record{}, fmt.Errorf("encode manifest: %w", err)
	}
	doc, err := parseDocument(manifest, s.cfg.Limits)
	if err != nil {
		return record{}, err
	}
	rec, err := parseImage(describe(manifest, doc), doc, config, platform)
	if err != nil {
		return record{}, err
	}
	for _, data := range [][]byte{config, manifest} {
		if _, err := s.blobs.write(ctx, data); err != nil {
			return record{}, err
		}
	}
	rec.Loaded, rec.Made = time.Now().UTC(), true
	return rec, nil
}

// ociType is the media type of a layer in an OCI manifest.
func ociType(t string) string {
	if rest, ok := strings.CutPrefix(t, dockerLayer); ok {
		return ocispec.MediaTypeImageLayer + strings.Replace(rest, ".", "+", 1)
	}
	return t
}
