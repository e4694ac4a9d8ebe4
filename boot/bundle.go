package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/deb"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/keychain"
)

// A kernel bundle is an OCI artifact: an image manifest, or an index with one for linux and each architecture. Each layer
// is one file as it is, named by the layer's annotation "org.opencontainers.image.title"; media types do not matter:
//
//	kernel       the kernel, in any form that Config.Kernel may have
//	modules.tar  the modules as lib/modules/<release>/...; may be compressed with gzip, xz or zstd, may be absent
//
// Layers of other names are ignored. The annotation "org.arcbox.kernel.release" of the manifest names the release where
// there are no modules to tell it.
const (
	BundleKernel  = "kernel"
	BundleModules = "modules.tar"
	BundleRelease = "org.arcbox.kernel.release"

	titleAnnotation = "org.opencontainers.image.title"
)

// bundleRecord remembers what a reference stood for when the registry was asked.
type bundleRecord struct {
	Digest string `json:"digest"`
}

// kernelFromImage takes a kernel bundle from a registry. What a tag stood for when it was first asked for stays, until
// the cache is removed.
func (r *resolver) kernelFromImage(ctx context.Context) (*entry, error) {
	ref, err := name.ParseReference(r.cfg.Image)
	if err != nil {
		return nil, fmt.Errorf("kernel image: %w reference: %w", errs.ErrInvalid, err)
	}
	source := "image-" + r.cfg.Arch + "-" + digest(ref.Name())[:32]
	if e, err := r.cachedBundle(ctx, source); err == nil || ctx.Err() != nil {
		return e, err
	}
	unlock, err := r.store.lock(ctx, "source-"+source, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := r.cachedBundle(ctx, source)
	if err == nil || ctx.Err() != nil {
		return e, err
	}
	if r.cfg.Offline {
		return nil, fmt.Errorf("kernel image %s: %w", ref, errOffline())
	}
	r.rep.report(StepFind, 0, 0)
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(keychain.Docker{}),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: r.cfg.Arch}))
	if err != nil {
		return nil, fmt.Errorf("kernel image %s: %w: %w", ref, errs.ErrUnavailable, err)
	}
	sum, err := img.Digest()
	if err != nil {
		return nil, fmt.Errorf("kernel image %s: %w", ref, err)
	}
	r.rep.report(StepFind, 1, 1)
	e, err = r.store.obtain(ctx, kindKernel, r.kernelKey("bundle", sum.String()), func(ctx context.Context, dir string) (any, error) {
		return r.unpackBundle(ctx, dir, "image "+ref.Context().Name()+"@"+sum.String(), img)
	})
	if err != nil {
		return nil, fmt.Errorf("kernel image %s: %w", ref, err)
	}
	b, err := json.Marshal(bundleRecord{Digest: sum.String()})
	if err == nil {
		err = fsx.WriteFile(r.sourcePath(source), b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("remember kernel image: %w", err)
	}
	return e, nil
}

// cachedBundle returns the entry of what the reference stood for earlier.
func (r *resolver) cachedBundle(ctx context.Context, source string) (*entry, error) {
	b, err := os.ReadFile(r.sourcePath(source))
	if err != nil {
		return nil, notFound(err)
	}
	var rec bundleRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, fmt.Errorf("%w source: %w", errs.ErrCorrupt, err)
	}
	return r.store.find(ctx, kindKernel, r.kernelKey("bundle", rec.Digest))
}

func (r *resolver) unpackBundle(ctx context.Context, dir, source string, img v1.Image) (*kernelMeta, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w: %w", errs.ErrUnavailable, err)
	}
	scratch := filepath.Join(dir, "scratch")
	defer func() { _ = os.RemoveAll(scratch) }()
	u := &unpacker{dir: scratch}
	kernel := ""
	for _, d := range m.Layers {
		title := d.Annotations[titleAnnotation]
		if title != BundleKernel && title != BundleModules {
			continue
		}
		if d.Size < 0 || d.Size > maxDownload {
			return nil, fmt.Errorf("%w: layer %s has %d bytes", errs.ErrInvalid, title, d.Size)
		}
		p := filepath.Join(scratch, title)
		if err := r.fetchLayer(ctx, img, d, p); err != nil {
			return nil, fmt.Errorf("layer %s: %w", title, err)
		}
		if title == BundleKernel {
			kernel = p
		} else if err := walkTarFile(ctx, p, u.visit); err != nil {
			return nil, fmt.Errorf("layer %s: %w", title, err)
		}
	}
	if kernel == "" {
		return nil, fmt.Errorf("%w: it has no layer titled %s", errs.ErrInvalid, BundleKernel)
	}
	if len(u.releases) > 1 {
		return nil, fmt.Errorf("%w: modules of more than one kernel: %s", errs.ErrInvalid, strings.Join(u.releases, ", "))
	}
	u.kernel, u.release = kernel, ""
	files, err := u.files(source)
	if err != nil {
		return nil, err
	}
	if release := m.Annotations[BundleRelease]; files.release == "" {
		files.release = release
	}
	return r.makeKernel(ctx, dir, files)
}

// fetchLayer writes the layer as it is. The registry client checks its digest.
func (r *resolver) fetchLayer(ctx context.Context, img v1.Image, d v1.Descriptor, dst string) error {
	l, err := img.LayerByDigest(d.Digest)
	if err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	defer func() { _ = rc.Close() }()
	r.rep.report(StepDownload, 0, d.Size)
	// Reading to the end makes the client compare size and digest.
	body := &progressReader{r: &ctxReader{ctx, rc}, rep: r.rep, step: StepDownload, total: d.Size}
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(f, body); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	r.rep.report(StepDownload, d.Size, d.Size)
	return f.Close()
}

func walkTarFile(ctx context.Context, p string, visit deb.VisitFunc) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 8)
	n, _ := f.ReadAt(head, 0)
	z, err := codec.NewReader(&ctxReader{ctx, f}, codec.Detect(head[:n]))
	if err != nil {
		return err
	}
	defer func() { _ = z.Close() }()
	return deb.WalkTar(z, visit)
}
