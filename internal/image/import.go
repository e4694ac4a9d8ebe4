package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions tunes Import. The zero value makes an image without a name and without a command.
type ImportOptions struct {
	Names    []string                   // given to the image, taken from those that had them
	Platform ocispec.Platform           // of what is in the archive; the zero value is Config.Platform
	Change   func(*ocispec.ImageConfig) // fills in the configuration, which is empty; nil leaves it so
	Author   string                     // "" is nobody
	Comment  string                     // of the one step of the history
}

// Import makes an image of one layer, the archive of a whole root that r yields, compressed or not: what ExportContainer
// or "docker export" write. r is read to its end, in the caller's goroutine; a Read that blocks is not interrupted by ctx,
// and its error ends the import. What is no archive is errs.ErrCorrupt, nothing at all, or a bad name, errs.ErrInvalid.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (Image, error) {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return Image{}, err
	}
	defer end()
	img, err := s.importRoot(ctx, r, o)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return img, nil
}

func (s *Store) importRoot(ctx context.Context, r io.Reader, o ImportOptions) (Image, error) {
	names, err := newNames(o.Names)
	if err != nil {
		return Image{}, err
	}
	if o.Platform.OS == "" && o.Platform.Architecture == "" {
		o.Platform = s.cfg.Platform
	}
	layer, err := s.keepLayer(ctx, r)
	if err != nil {
		return Image{}, err
	}
	if layer.Size == 0 {
		return Image{}, fmt.Errorf("archive is empty: %w", errs.ErrInvalid)
	}
	now := time.Now().UTC()
	img := ocispec.Image{
		Created: &now, Author: o.Author, Platform: o.Platform,
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.DiffID}},
		History: []ocispec.History{{Created: &now, Author: o.Author, Comment: o.Comment}},
	}
	if o.Change != nil {
		o.Change(&img.Config)
	}
	config, err := json.Marshal(img)
	if err != nil {
		return Image{}, fmt.Errorf("encode configuration: %w", err)
	}
	rec, err := s.writeImage(ctx, config, []layerRecord{layer}, o.Platform)
	if err != nil {
		return Image{}, err
	}
	return s.publish(ctx, rec, names)
}
