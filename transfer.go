package arcbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// LayerState is what becomes of a layer in a pull or a push.
type LayerState string

// The states of a layer: one of the first two may come before one of the others.
const (
	LayerWaiting = LayerState(image.LayerWaiting) // for its turn, or for another call that works on it
	LayerRunning = LayerState(image.LayerRunning) // is being transferred
	LayerDone    = LayerState(image.LayerDone)
	LayerExists  = LayerState(image.LayerExists)  // was there before
	LayerMounted = LayerState(image.LayerMounted) // was in another repository of the registry that it is pushed to
)

// LayerProgress is how far one layer of a pull or a push is.
type LayerProgress struct {
	Layer string // digest of the layer as registries have it
	State LayerState
	Done  int64 // bytes that are there; what an earlier pull left is among them
	Total int64 // bytes
}

// PullOptions tunes PullImage. The zero value works.
type PullOptions struct {
	// Policy says when the registry is asked. The zero value and PullAlways ask it every time; PullMissing only where the
	// store does not have the name, and PullNever never: a missing image is ErrNotFound then.
	Policy PullPolicy
	// Platform is chosen from an image for several, for example "linux/arm64" or "linux/arm/v7". "" is the machine's.
	Platform string
	// Progress is told how far each layer is. It is called from one goroutine at a time and must return soon. nil is
	// none.
	Progress func(LayerProgress)
}

// PullImage fetches an image from a registry, or a mirror of it, into the store. What is there already is not fetched
// again, layers come several at a time, and what an earlier pull has left of one is gone on from. Several pulls of one
// image, in one program or in many, do the work once. References are read as Docker does: "alpine", "localhost:5000/app:1",
// "ghcr.io/a/b@sha256:…".
//
// A malformed reference is ErrInvalid, an unknown image ErrNotFound, one that has no manifest for the platform
// ErrUnsupported, a registry that does not answer or refuses ErrUnavailable, contents with another digest ErrCorrupt.
func (r *Runtime) PullImage(ctx context.Context, ref string, opts PullOptions) (ImageInfo, error) {
	return call(ctx, r, "PullImage", ref, func(ctx context.Context) (ImageInfo, error) {
		switch opts.Policy {
		case "", PullAlways:
		case PullMissing, PullNever:
			img, err := r.images.Get(ctx, ref)
			if err == nil || opts.Policy == PullNever || !errors.Is(err, ErrNotFound) {
				return imageInfo(img), err
			}
		default:
			return ImageInfo{}, badPolicy(opts.Policy)
		}
		img, err := r.pull(ctx, ref, opts)
		return imageInfo(img), err
	})
}

func badPolicy(p PullPolicy) error {
	return fmt.Errorf("%w pull policy %q: use always, missing or never, or leave it empty", ErrInvalid, p)
}

func (r *Runtime) pull(ctx context.Context, ref string, opts PullOptions) (image.Image, error) {
	platform, err := parsePlatform(opts.Platform)
	if err != nil {
		return image.Image{}, err
	}
	img, err := r.images.Pull(ctx, ref, image.PullOptions{Platform: platform, Progress: r.layerProgress(ref, opts.Progress)})
	if err == nil {
		r.publishImage(event.ImagePulled, img, ref)
	}
	return img, err
}

// parsePlatform reads os/architecture[/variant].
func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return ocispec.Platform{}, nil
	}
	part := strings.Split(s, "/")
	for _, p := range part {
		if p == "" || len(part) < 2 || len(part) > 3 {
			return ocispec.Platform{}, fmt.Errorf("%w platform %q: use os/architecture or os/architecture/variant, as in linux/arm64", ErrInvalid, s)
		}
	}
	p := ocispec.Platform{OS: part[0], Architecture: part[1]}
	if len(part) == 3 {
		p.Variant = part[2]
	}
	return p, nil
}

// checkPlatform returns an error for an image that the machine cannot run.
func (r *Runtime) checkPlatform(ctx context.Context, ref string) error {
	img, err := r.images.Get(ctx, ref)
	if err != nil {
		return err
	}
	has, arch := img.Platform.Architecture, r.cfg.VM.Arch
	older := map[string]string{"amd64": "386", "arm64": "arm"} // that these processors run too
	if has == arch || has == older[arch] {
		return nil
	}
	return fmt.Errorf("%w: the image is for %s and the machine is %s: pull it for linux/%s, or set Config.VM.Arch",
		ErrUnsupported, imageInfo(img).Platform, arch, arch)
}

// layerEvery is how often the progress of one layer becomes an event, besides its changes of state.
const layerEvery = time.Second

// layerProgress tells events, and a function that may be nil, how far layers are. It is called by one goroutine at a time.
func (r *Runtime) layerProgress(ref string, fn func(LayerProgress)) func(image.LayerProgress) {
	type told struct {
		state image.LayerState
		at    time.Time
	}
	last := map[digest.Digest]told{}
	return func(p image.LayerProgress) {
		if fn != nil {
			fn(LayerProgress{Layer: p.Layer.String(), State: LayerState(p.State), Done: p.Done, Total: p.Total})
		}
		now := time.Now()
		if was := last[p.Layer]; was.state == p.State && now.Sub(was.at) < layerEvery {
			return
		}
		last[p.Layer] = told{p.State, now}
		r.events.Publish(event.Event{Kind: event.ImageLayer, Image: ref, Attributes: map[string]string{
			event.AttrLayer: p.Layer.String(), event.AttrState: string(p.State),
			event.AttrDone: strconv.FormatInt(p.Done, 10), event.AttrTotal: strconv.FormatInt(p.Total, 10),
		}})
	}
}

// PushOptions tunes PushImage. The zero value works.
type PushOptions struct {
	// Progress is told how far each layer is, as PullOptions.Progress is. nil is none.
	Progress func(LayerProgress)
}

// PushImage sends the image that has the name ref to the registry of that name; TagImage gives an image such a name. What
// the registry has already is not sent. It returns the image with the digest that the registry knows it by: layers that
// were made here, by a commit, a build, or from a Docker archive, are compressed first, and the image gets another
// manifest by that, here too.
//
// A reference that is no name, or has a digest, is ErrInvalid, an unknown image ErrNotFound, a registry that does not
// answer or refuses ErrUnavailable, a layer that was changed on disk ErrCorrupt. After an error the registry's tag is what
// it was.
func (r *Runtime) PushImage(ctx context.Context, ref string, opts PushOptions) (ImageInfo, error) {
	return call(ctx, r, "PushImage", ref, func(ctx context.Context) (ImageInfo, error) {
		img, err := r.images.Push(ctx, ref, image.PushOptions{Progress: r.layerProgress(ref, opts.Progress)})
		if err == nil {
			r.publishImage(event.ImagePushed, img, ref)
		}
		return imageInfo(img), err
	})
}

// SaveImage writes images to w as one tar archive that is an OCI image layout and an archive of docker save at once: either
// reader finds the images under the names by which refs ask for them. The same images give the same bytes.
//
// An unknown image is ErrNotFound, and nothing is written. A layer that was changed on disk ends the archive in the middle
// with ErrCorrupt.
func (r *Runtime) SaveImage(ctx context.Context, w io.Writer, refs ...string) error {
	return callNone(ctx, r, "SaveImage", strings.Join(refs, " "), func(ctx context.Context) error {
		return r.images.Save(ctx, w, refs)
	})
}

// LoadOptions tunes LoadImage and LoadImageFrom. The zero value works.
type LoadOptions struct {
	Platform string // chosen from images for several, as PullOptions.Platform; "" is the machine's
	Name     string // given to the image besides its own names; ErrInvalid where the archive has several; "" is none
}

// LoadImage reads images from a file into the store: an OCI image layout, as a directory or a tar archive, or an archive
// of docker save, each compressed or not. It returns the images that fit the platform.
//
// An archive that is cut off or whose contents do not have their digests is ErrCorrupt, one with no image for the
// platform ErrUnsupported. Nothing of an archive is written outside the store.
func (r *Runtime) LoadImage(ctx context.Context, path string, opts LoadOptions) ([]ImageInfo, error) {
	return r.load(ctx, path, opts, func(ctx context.Context, o image.LoadOptions) ([]image.Image, error) {
		return r.images.Load(ctx, path, o)
	})
}

// LoadImageFrom is LoadImage from an archive that rd yields. It is read to its end, in the caller's goroutine: a Read that
// blocks is not interrupted by ctx.
func (r *Runtime) LoadImageFrom(ctx context.Context, rd io.Reader, opts LoadOptions) ([]ImageInfo, error) {
	return r.load(ctx, "", opts, func(ctx context.Context, o image.LoadOptions) ([]image.Image, error) {
		return r.images.LoadStream(ctx, rd, o)
	})
}

func (r *Runtime) load(ctx context.Context, ref string, opts LoadOptions, do func(context.Context, image.LoadOptions) ([]image.Image, error)) ([]ImageInfo, error) {
	return call(ctx, r, "LoadImage", ref, func(ctx context.Context) ([]ImageInfo, error) {
		platform, err := parsePlatform(opts.Platform)
		if err != nil {
			return nil, err
		}
		images, err := do(ctx, image.LoadOptions{Platform: platform, Name: opts.Name})
		for _, img := range images {
			r.publishImage(event.ImageLoaded, img, "")
		}
		return imageInfos(images), err
	})
}

// ImportOptions tunes ImportImage. The zero value makes an image without a name and without a command.
type ImportOptions struct {
	Names    []string                   // given to the image, taken from those that had them
	Platform string                     // of what is in the archive, as PullOptions.Platform; "" is the machine's
	Change   func(*ocispec.ImageConfig) // fills in the configuration: command, environment and so on; nil leaves it empty
	Author   string                     // "" is nobody
	Comment  string                     // in the image's history
}

// ImportImage makes an image of one layer from a tar archive of a whole root, compressed or not: what ExportContainer and
// docker export write, or mmdebstrap. rd is read to its end, in the caller's goroutine: a Read that blocks is not
// interrupted by ctx.
//
// What is no archive or is cut off is ErrCorrupt, an empty stream or a malformed name ErrInvalid.
func (r *Runtime) ImportImage(ctx context.Context, rd io.Reader, opts ImportOptions) (ImageInfo, error) {
	return call(ctx, r, "ImportImage", first(opts.Names), func(ctx context.Context) (ImageInfo, error) {
		platform, err := parsePlatform(opts.Platform)
		if err != nil {
			return ImageInfo{}, err
		}
		img, err := r.images.Import(ctx, rd, image.ImportOptions{
			Names: opts.Names, Platform: platform, Change: opts.Change, Author: opts.Author, Comment: opts.Comment,
		})
		if err != nil {
			return ImageInfo{}, err
		}
		r.publishImage(event.ImageImported, img, "")
		return imageInfo(img), nil
	})
}
