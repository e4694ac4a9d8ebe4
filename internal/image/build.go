package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildSpec says what Build makes. The same spec makes the same image, byte for byte, wherever it is built.
type BuildSpec struct {
	Names   []string                   // given to the image, taken from those that had them
	Base    string                     // reference of an image in the store; "" is none
	Layers  []LayerSource              // on top of Base, lowest first
	Change  func(*ocispec.ImageConfig) // changes Base's configuration, or makes one; nil is none
	Created time.Time                  // of the image; zero gives it no such time, which would differ at each build
	Author  string
	Comment string // of each new entry of the history
}

// LayerSource is where the files of a layer come from: exactly one of FS, Files and Tar.
type LayerSource struct {
	FS    fs.FS                // directories, regular files and symbolic links
	Files map[string]LayerFile // by path in Dir
	Tar   io.Reader            // an archive with OCI whiteouts, compressed or not, which becomes the layer as it is

	// The rest is for FS and Files.
	Dir      string                  // of the image, into which the files go; "" is the root
	ModTime  time.Time               // of all files that have none of their own here; zero is 1970
	UID, GID int                     // of the same
	Header   func(*tar.Header) error // changes mode, owner, times and attributes of what is new; nil is none

	CreatedBy string // entry of the history
}

// LayerFile is one file of LayerSource.Files. Of Data, Path and Link one at most is set.
type LayerFile struct {
	Data []byte
	Path string      // of a regular file on the host, whose content it gets
	Link string      // makes it a symbolic link with this target
	Mode fs.FileMode // with fs.ModeDir for a directory; no permissions are those that files of LayerSource.FS get
	// ModTime, UID and GID are those of the LayerSource where they are zero.
	ModTime  time.Time
	UID, GID int
	Xattrs   map[string]string
}

// Build makes an image of another one, or of none, and layers made of values. A file of FS is 0755 where its content
// begins as that of a program does, an ELF binary or "#!", and 0644 otherwise; directories are 0755: the modes of the host
// differ between systems. A directory that the layers below have keeps its mode and owner, and a symbolic link to a
// directory that they have is followed, as an extraction does it.
//
// A name that is malformed, a file that is neither directory, regular nor a link, or one whose size changes meanwhile is
// errs.ErrInvalid, a Base that is not in the store errs.ErrNotFound. After an error no image has changed. FS, Tar and the
// functions are called in the caller's goroutine; one that blocks is not interrupted by ctx.
func (s *Store) Build(ctx context.Context, spec BuildSpec) (Image, error) {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return Image{}, err
	}
	defer end()
	img, err := s.build(ctx, spec)
	if err != nil {
		return Image{}, fmt.Errorf("build image: %w", err)
	}
	return img, nil
}

func (s *Store) build(ctx context.Context, spec BuildSpec) (Image, error) {
	names, err := newNames(spec.Names)
	if err != nil {
		return Image{}, err
	}
	rec, config, err := s.buildBase(spec)
	if err != nil {
		return Image{}, err
	}
	v := &view{}
	defer v.close()
	for _, l := range rec.Layers {
		if err := v.push(ctx, s, LayerInfo(l)); err != nil {
			return Image{}, err
		}
	}
	layers := rec.Layers[:len(rec.Layers):len(rec.Layers)]
	change := configChange{change: spec.Change, author: spec.Author, created: spec.Created.UTC()}
	for i, src := range spec.Layers {
		l, err := s.buildLayer(ctx, v, src)
		if err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, l)
		change.layers = append(change.layers, l.DiffID)
		change.history = append(change.history, change.entry(src.CreatedBy, spec.Comment))
	}
	if config, err = change.apply(config); err != nil {
		return Image{}, err
	}
	next, err := s.writeImage(ctx, config, layers, rec.Platform)
	if err != nil {
		return Image{}, err
	}
	return s.publish(ctx, next, names)
}

// newNames normalises the names that an image is to get.
func newNames(in []string) ([]string, error) {
	out := make([]string, len(in))
	for i, n := range in {
		named, err := parseRef(n)
		if err != nil {
			return nil, err
		}
		if digestOf(named) != "" {
			return nil, fmt.Errorf("name %q has a digest: %w", n, errs.ErrInvalid)
		}
		out[i] = named.String()
	}
	return out, nil
}

// publish makes an image that was made here visible.
func (s *Store) publish(ctx context.Context, rec record, names []string) (Image, error) {
	if err := s.save(ctx, rec, names, rec.Manifest.Digest); err != nil {
		return Image{}, err
	}
	refs, err := s.refs(func(error) {})
	if err != nil {
		return Image{}, err
	}
	return s.image(rec, refs[rec.ID])
}

// buildBase returns the image below and its configuration; without one, what stands for it.
func (s *Store) buildBase(spec BuildSpec) (record, []byte, error) {
	rec := record{Platform: s.cfg.Platform}
	var config []byte
	var err error
	if spec.Base != "" {
		if rec, err = s.resolve(spec.Base); err != nil {
			return record{}, nil, err
		}
		config, err = s.blobs.read(rec.ID, s.cfg.Limits.ConfigSize)
	} else {
		config, err = json.Marshal(ocispec.Image{Platform: rec.Platform, RootFS: ocispec.RootFS{Type: "layers"}})
	}
	if n := len(rec.Layers) + len(spec.Layers); n == 0 {
		return record{}, nil, fmt.Errorf("image with neither a base nor a layer: %w", errs.ErrInvalid)
	} else if n > s.cfg.Limits.Layers {
		return record{}, nil, fmt.Errorf("image would have %d layers, at most %d: %w", n, s.cfg.Limits.Layers, errs.ErrInvalid)
	}
	return rec, config, err
}

// buildLayer brings one layer into the store and puts it on the view.
func (s *Store) buildLayer(ctx context.Context, v *view, src LayerSource) (layerRecord, error) {
	if err := src.check(); err != nil {
		return layerRecord{}, err
	}
	var l layerRecord
	var err error
	if src.Tar != nil {
		l, err = s.keepLayer(ctx, src.Tar)
	} else {
		l, err = s.packLayer(ctx, v, src)
	}
	if err != nil {
		return layerRecord{}, err
	}
	return l, v.push(ctx, s, LayerInfo(l))
}

// packLayer writes the archive of a layer.
func (s *Store) packLayer(ctx context.Context, v *view, src LayerSource) (layerRecord, error) {
	w, err := s.blobs.writer()
	if err != nil {
		return layerRecord{}, err
	}
	defer func() { _ = w.Close() }()
	p := newPacker(ctx, v, src, s.cfg.Limits, w)
	if err := p.pack(); err != nil {
		return layerRecord{}, err
	}
	st, err := w.Status()
	if err != nil {
		return layerRecord{}, err
	}
	d := w.Digest()
	l := layerRecord{DiffID: d, Digest: d, Size: st.Offset, MediaType: ocispec.MediaTypeImageLayer}
	return l, w.Commit(ctx, l.Size, d)
}

func (src LayerSource) check() error {
	n := 0
	for _, set := range []bool{src.FS != nil, src.Files != nil, src.Tar != nil} {
		if set {
			n++
		}
	}
	switch {
	case n != 1:
		return fmt.Errorf("source has %d of FS, Files and Tar, it must have one: %w", n, errs.ErrInvalid)
	case src.Tar != nil && (src.Dir != "" || src.UID != 0 || src.GID != 0 || !src.ModTime.IsZero() || src.Header != nil):
		return fmt.Errorf("source has Tar, to which Dir, ModTime, UID, GID and Header do not apply: %w", errs.ErrInvalid)
	}
	return nil
}
