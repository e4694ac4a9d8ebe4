package arcbox

import (
	"context"
	"path"
	"time"

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

// LoadOptions tunes LoadImage. The zero value works.
type LoadOptions struct{}

// LoadImage reads images from a file into the store: an OCI image layout, as a directory or a tar archive, or an archive
// of docker save, each compressed or not. It returns the images that fit the machine's platform.
//
// An archive that is cut off or whose contents do not have their digests is ErrCorrupt, one with no image for the
// platform ErrUnsupported. Nothing of an archive is written outside the store.
func (r *Runtime) LoadImage(ctx context.Context, path string, opts LoadOptions) ([]ImageInfo, error) {
	return call(ctx, r, "LoadImage", path, func(ctx context.Context) ([]ImageInfo, error) {
		images, err := r.images.Load(ctx, path, image.LoadOptions{})
		for _, img := range images {
			r.publishImage(event.ImageLoaded, img, "")
		}
		return imageInfos(images), err
	})
}

// PullProgress is how far the pull of one layer is.
type PullProgress struct {
	Layer string // digest of the compressed layer
	Done  int64  // bytes
	Total int64  // bytes
}

// PullOptions tunes PullImage. The zero value works.
type PullOptions struct {
	// Progress is told how far each layer is. It is called from one goroutine at a time and must return soon. nil is
	// none.
	Progress func(PullProgress)
}

// PullImage fetches an image from a registry into the store, for the machine's platform. What is there already is not
// fetched again. References are read as Docker does: "alpine", "localhost:5000/app:1", "ghcr.io/a/b@sha256:…".
//
// A malformed reference is ErrInvalid, an unknown image ErrNotFound, one that has no manifest for the platform
// ErrUnsupported, a registry that does not answer ErrUnavailable, contents with another digest ErrCorrupt.
func (r *Runtime) PullImage(ctx context.Context, ref string, opts PullOptions) (ImageInfo, error) {
	return call(ctx, r, "PullImage", ref, func(ctx context.Context) (ImageInfo, error) {
		img, err := r.pull(ctx, ref, opts)
		return imageInfo(img), err
	})
}

func (r *Runtime) pull(ctx context.Context, ref string, opts PullOptions) (image.Image, error) {
	o := image.PullOptions{}
	if opts.Progress != nil {
		o.Progress = func(p image.PullProgress) {
			opts.Progress(PullProgress{Layer: p.Layer.String(), Done: p.Done, Total: p.Total})
		}
	}
	img, err := r.images.Pull(ctx, ref, o)
	if err == nil {
		r.publishImage(event.ImagePulled, img, ref)
	}
	return img, err
}

// ListImagesOptions tunes ListImages. The zero value lists all.
type ListImagesOptions struct{}

// ListImages returns the images in the store, the newest first.
func (r *Runtime) ListImages(ctx context.Context, opts ListImagesOptions) ([]ImageInfo, error) {
	return call(ctx, r, "ListImages", "", func(ctx context.Context) ([]ImageInfo, error) {
		images, err := r.images.List(ctx)
		return imageInfos(images), err
	})
}

// InspectImage returns what is known of one image, by name, id, or a unique prefix of an id.
func (r *Runtime) InspectImage(ctx context.Context, ref string) (ImageInfo, error) {
	return call(ctx, r, "InspectImage", ref, func(ctx context.Context) (ImageInfo, error) {
		img, err := r.images.Get(ctx, ref)
		return imageInfo(img), err
	})
}

func (r *Runtime) publishImage(kind event.Kind, img image.Image, ref string) {
	if ref == "" && len(img.Names) > 0 {
		ref = img.Names[0]
	}
	r.events.Publish(event.Event{Kind: kind, ID: img.ID.String(), Image: ref})
}
