package arcbox

import (
	"context"
	"path"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// ImageInfo is what is known of an image in the store.
type ImageInfo struct {
	ID       string            // digest of the image's config, "sha256:…"
	Names    []string          // normalised references, for example "docker.io/library/alpine:latest"
	Digest   string            // of the manifest
	Platform string            // for example "linux/amd64"
	Created  time.Time         // as the image says; zero where it does not
	Size     int64             // of the compressed layers together, in bytes
	Layers   int               // how many
	Labels   map[string]string // of the image's config
}

func imageInfo(i image.Image) ImageInfo {
	return ImageInfo{
		ID: i.ID.String(), Names: i.Names, Digest: i.Manifest.String(), Platform: path.Join(i.Platform.OS, i.Platform.Architecture, i.Platform.Variant),
		Created: i.Created, Size: i.Size, Layers: len(i.Layers), Labels: i.Config.Labels,
	}
}

func imageInfos(images []image.Image) []ImageInfo {
	out := make([]ImageInfo, len(images))
	for i, img := range images {
		out[i] = imageInfo(img)
	}
	return out
}

// ListImagesOptions chooses images: one has to pass every field that is set. The zero value lists all.
type ListImagesOptions struct {
	References []string // patterns such as "alpine" or "team/*:1.*", of which one must match; names that none matches are left out
	Dangling   *bool    // whether it has no name; nil is either
	Labels     []string // "key" or "key=value"
	Before     string   // name or id: images that say they were made before that one
	Since      string   // name or id: images that say they were made after that one
}

// ListImages returns images of the store, the newest first. A malformed pattern is ErrInvalid, an unknown image in Before
// or Since ErrNotFound.
func (r *Runtime) ListImages(ctx context.Context, opts ListImagesOptions) ([]ImageInfo, error) {
	return call(ctx, r, "ListImages", "", func(ctx context.Context) ([]ImageInfo, error) {
		images, err := r.images.Select(ctx, image.Filter(opts))
		return imageInfos(images), err
	})
}

// ImageDetails is all that is known of an image.
type ImageDetails struct {
	ImageInfo
	Author    string
	Config    ocispec.ImageConfig // how containers of it run
	LayerList []LayerInfo         // the lowest first
	History   []HistoryEntry      // the oldest first
	// DiskSize is what the image takes on disk in bytes, its blobs and the file systems made of its layers; SharedSize is
	// the part of it that other images need too, so that removing this one gives back the difference.
	DiskSize, SharedSize int64
}

// LayerInfo is one layer of an image.
type LayerInfo struct {
	DiffID    string // digest of the uncompressed archive
	Digest    string // of the layer as it came
	MediaType string // of the layer as it came
	Size      int64  // of the layer as it came, in bytes
	DiskSize  int64  // bytes on disk, its file system included
	Shared    bool   // another image has it too
}

// HistoryEntry is a step in the making of an image, by the image's own word.
type HistoryEntry struct {
	Created   time.Time // zero where it is not known
	CreatedBy string    // the command
	Author    string
	Comment   string
	DiffID    string // of the layer that it made; "" where it made none
	Size      int64  // of that layer as it came, in bytes
}

func imageDetails(d image.Details) ImageDetails {
	out := ImageDetails{ImageInfo: imageInfo(d.Image), Author: d.Author, Config: d.Config, DiskSize: d.DiskSize, SharedSize: d.SharedSize}
	for i, l := range d.Layers {
		out.LayerList = append(out.LayerList, LayerInfo{
			DiffID: l.DiffID.String(), Digest: l.Digest.String(), MediaType: l.MediaType, Size: l.Size,
			DiskSize: d.Usage[i].DiskSize, Shared: d.Usage[i].Shared,
		})
	}
	for _, h := range d.History {
		out.History = append(out.History, HistoryEntry{
			Created: h.Created, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, DiffID: h.DiffID.String(), Size: h.Size,
		})
	}
	return out
}

// InspectImage returns all that is known of one image, by name, id, or a unique prefix of an id: its configuration, layers
// and history, and what it takes on disk.
func (r *Runtime) InspectImage(ctx context.Context, ref string) (ImageDetails, error) {
	return call(ctx, r, "InspectImage", ref, func(ctx context.Context) (ImageDetails, error) {
		d, err := r.images.Details(ctx, ref)
		return imageDetails(d), err
	})
}

// TagImage gives an image one more name, taking it from the image that had it. A name that is malformed or has a digest is
// ErrInvalid.
func (r *Runtime) TagImage(ctx context.Context, ref, name string) error {
	return callNone(ctx, r, "TagImage", ref, func(ctx context.Context) error {
		if err := r.images.Tag(ctx, ref, name); err != nil {
			return err
		}
		img, err := r.images.Get(ctx, name)
		if err == nil {
			r.publishImage(event.ImageTagged, img, name)
		}
		return err
	})
}

// UntagImage takes a name from its image. The image stays, without a name where that was the last, until it is removed or
// pruned. An id is ErrInvalid.
func (r *Runtime) UntagImage(ctx context.Context, name string) error {
	return callNone(ctx, r, "UntagImage", name, func(ctx context.Context) error {
		got, err := r.images.Untag(ctx, name)
		r.publishRemoved(got)
		return err
	})
}

// RemoveImageOptions tunes RemoveImage.
type RemoveImageOptions struct {
	// Force removes an image by id though it has several names, and one that containers were made from as long as none of
	// them runs, in this program or another. Those cannot be started again then.
	Force bool
}

// RemovedImage is what RemoveImage removed.
type RemovedImage struct {
	ID       string   // of the image
	Untagged []string // names that were taken from it
	Deleted  bool     // the image itself went too
}

// RemoveImage takes a name from its image; with the last one the image goes too. Given an id, or a unique prefix of one,
// it removes the image with its name. What nothing else needs of it stays on disk until the images are pruned.
//
// An image that containers were made from, of this program or another, is ErrInUse, which names them, and so is one by id
// that has several names.
func (r *Runtime) RemoveImage(ctx context.Context, ref string, opts RemoveImageOptions) (RemovedImage, error) {
	return call(ctx, r, "RemoveImage", ref, func(ctx context.Context) (RemovedImage, error) {
		got, err := r.images.Remove(ctx, ref, image.RemoveOptions(opts))
		r.publishRemoved(got)
		return RemovedImage{ID: got.Image.ID.String(), Untagged: got.Names, Deleted: got.Gone}, err
	})
}

func (r *Runtime) publishRemoved(got image.Removed) {
	for _, name := range got.Names {
		r.publishImage(event.ImageUntagged, got.Image, name)
	}
	if got.Gone {
		r.publishImage(event.ImageRemoved, got.Image, "")
	}
}

func (r *Runtime) publishImage(kind event.Kind, img image.Image, ref string) {
	if ref == "" && len(img.Names) > 0 {
		ref = img.Names[0]
	}
	r.events.Publish(event.Event{Kind: kind, ID: img.ID.String(), Image: ref})
}
