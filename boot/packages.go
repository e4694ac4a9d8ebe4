package boot

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go/boot/internal/deb"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

const packageName = "package.deb"

// pkg is a Debian package by its content.
type pkg struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size,omitempty"` // 0 where it is not known
	Name   string `json:"name,omitempty"` // for people, and for whoever fetches it
}

// packageSet is what a kernel is made from. The cache keeps the packages, so that a later version of this package which
// wants other modules needs no network.
type packageSet struct {
	Source   string `json:"source"`
	Packages []pkg  `json:"packages"`
}

// fetchFunc writes a package to the file dst. Size and digest are checked afterwards.
type fetchFunc func(ctx context.Context, p pkg, dst string) error

// kernelFromPackages returns the kernel entry of a set of packages, and fetches those that are not cached.
func (r *resolver) kernelFromPackages(ctx context.Context, set packageSet, fetch fetchFunc) (*entry, error) {
	parts := []string{"packages"}
	for _, p := range set.Packages {
		parts = append(parts, p.SHA256)
	}
	return r.store.obtain(ctx, kindKernel, r.kernelKey(parts...), func(ctx context.Context, dir string) (any, error) {
		var paths []string
		for _, p := range set.Packages {
			e, err := r.pkg(ctx, p, fetch)
			if err != nil {
				return nil, err
			}
			paths = append(paths, e.path(packageName))
		}
		return r.unpackPackages(ctx, dir, set.Source, paths)
	})
}

// pkg returns the entry of a package.
func (r *resolver) pkg(ctx context.Context, p pkg, fetch fetchFunc) (*entry, error) {
	return r.store.obtain(ctx, kindPackage, p.SHA256, func(ctx context.Context, dir string) (any, error) {
		dst := filepath.Join(dir, packageName)
		if err := fetch(ctx, p, dst); err != nil {
			return nil, fmt.Errorf("fetch %s: %w", p.Name, err)
		}
		got, err := hashFile(ctx, dir, packageName, false)
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w", p.Name, err)
		}
		if got.SHA256 != p.SHA256 || (p.Size > 0 && got.Size != p.Size) {
			return nil, fmt.Errorf("fetch %s: %w: %d bytes with SHA-256 %s instead of %s", p.Name, errs.ErrCorrupt, got.Size, got.SHA256, p.SHA256)
		}
		return p, nil
	})
}

func (r *resolver) unpackPackages(ctx context.Context, dir, source string, paths []string) (*kernelMeta, error) {
	scratch := filepath.Join(dir, "scratch")
	defer func() { _ = os.RemoveAll(scratch) }()
	total := int64(0)
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", source, err)
		}
		total += info.Size()
	}
	u := &unpacker{dir: scratch}
	progress := &progressReader{rep: r.rep, step: StepUnpack, total: total}
	r.rep.report(StepUnpack, 0, total)
	for _, p := range paths {
		if err := unpackPackage(ctx, p, progress, u.visit); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", source, err)
		}
	}
	files, err := u.files(source)
	if err != nil {
		return nil, err
	}
	meta, err := r.makeKernel(ctx, dir, files)
	if err == nil {
		r.rep.report(StepUnpack, total, total)
	}
	return meta, err
}

// unpackPackage walks the files of a package: by dpkg-deb where the system has it, since that decodes xz on all
// processors, and by our own reader elsewhere.
func unpackPackage(ctx context.Context, p string, progress *progressReader, visit deb.VisitFunc) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	progress.r = &ctxReader{ctx, f}
	tool, err := exec.LookPath("dpkg-deb")
	if err != nil {
		return deb.Walk(progress, visit)
	}
	// The end of ctx or of the walk ends the child, whichever comes first.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := child{path: tool, args: []string{"--fsys-tarfile", "-"}, env: []string{"LC_ALL=C"}, stdin: progress, stdout: pw}.run(ctx)
		_ = pw.CloseWithError(err) // nil is the end of the archive
		done <- err
	}()
	err = deb.WalkTar(pr, visit)
	if err == nil {
		_, err = io.Copy(io.Discard, pr) // what follows the archive's end, so that the child ends by itself
	} else {
		cancel()
	}
	_ = pr.Close()
	if cerr := <-done; err == nil && cerr != nil {
		err = fmt.Errorf("%w: %w", errs.ErrCorrupt, cerr)
	}
	return err
}

// kernelFromURL takes a package from a URL.
func (r *resolver) kernelFromURL(ctx context.Context, address, sum string, size int64) (*entry, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("kernel package: %w URL: it must be http or https with a host", errs.ErrInvalid)
	}
	shown := u.Redacted() // without a password
	set := packageSet{Source: shown, Packages: []pkg{{SHA256: sum, Size: size, Name: shown}}}
	return r.kernelFromPackages(ctx, set, func(ctx context.Context, p pkg, dst string) error {
		if r.cfg.Offline {
			return errOffline()
		}
		return download(ctx, address, p.Size, dst, r.rep)
	})
}

func errOffline() error {
	return fmt.Errorf("%w: it is not in the cache, and Offline is set", errs.ErrUnavailable)
}

// kernelFromSystem takes the kernel package of the system's distribution, once: from then on the cache answers, so a
// machine keeps its kernel until the cache is removed.
func (r *resolver) kernelFromSystem(ctx context.Context) (*entry, error) {
	name := "system-" + r.cfg.Arch
	if e, err := r.kernelFromSource(ctx, name); err == nil || ctx.Err() != nil {
		return e, err
	}
	unlock, err := r.store.lock(ctx, "source-"+name, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := r.kernelFromSource(ctx, name)
	if err == nil || ctx.Err() != nil {
		return e, err
	}
	if r.cfg.Offline {
		return nil, fmt.Errorf("find kernel: %w", errOffline())
	}
	r.log.Debug("no kernel in the cache", "reason", err)
	return r.fetchSystemKernel(ctx, name)
}

// fetchSystemKernel asks apt, then the built-in list. The caller holds the lock of the source.
func (r *resolver) fetchSystemKernel(ctx context.Context, name string) (*entry, error) {
	e, aptErr := r.kernelFromApt(ctx, name)
	if aptErr == nil || ctx.Err() != nil {
		return e, aptErr
	}
	r.log.Info("apt has no kernel, trying the built-in list", "reason", aptErr)
	p, address, err := pinned(r.cfg.Arch, r.cfg.Mirror)
	if err == nil {
		if e, err = r.kernelFromURL(ctx, address, p.SHA256, p.Size); err == nil {
			return e, r.writeSource(name, packageSet{Source: p.Name, Packages: []pkg{p}})
		}
	}
	if ctx.Err() != nil {
		return nil, err
	}
	return nil, fmt.Errorf("find kernel: %w: set Kernel and Modules, or URL and SHA256, or Image: %w", errs.ErrUnavailable, errors.Join(aptErr, err))
}

// kernelFromApt tries the system's package lists, and lists of its own where those do not know a kernel or name one that
// the mirror does not have any more.
func (r *resolver) kernelFromApt(ctx context.Context, name string) (*entry, error) {
	a, err := r.newApt()
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(a.dir) }() // its lists and caches are larger than the kernel
	if err := a.prepare(); err != nil {
		return nil, err
	}
	var all []error
	for _, find := range []func(context.Context) (packageSet, error){a.findInSystemLists, a.findInOwnLists} {
		set, err := find(ctx)
		if err == nil {
			var e *entry
			if e, err = r.kernelFromPackages(ctx, set, a.fetch); err == nil {
				return e, r.writeSource(name, set)
			}
		}
		all = append(all, err)
		if ctx.Err() != nil {
			break
		}
		r.log.Debug("apt has no kernel", "reason", err)
	}
	return nil, errors.Join(all...)
}

func (r *resolver) sourcePath(name string) string {
	return filepath.Join(r.store.dir, "sources", name+".json")
}

// kernelFromSource returns the kernel of the set of packages that was chosen earlier, without network.
func (r *resolver) kernelFromSource(ctx context.Context, name string) (*entry, error) {
	b, err := os.ReadFile(r.sourcePath(name))
	if err != nil {
		return nil, notFound(err)
	}
	var set packageSet
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	for _, p := range set.Packages {
		if !isSHA256(p.SHA256) {
			return nil, fmt.Errorf("%w source %s", errs.ErrCorrupt, name)
		}
	}
	if len(set.Packages) == 0 {
		return nil, fmt.Errorf("%w source %s", errs.ErrCorrupt, name)
	}
	return r.kernelFromPackages(ctx, set, func(context.Context, pkg, string) error {
		return errs.ErrNotFound
	})
}

func (r *resolver) writeSource(name string, set packageSet) error {
	b, err := json.MarshalIndent(set, "", "\t")
	if err != nil {
		return fmt.Errorf("remember kernel: %w", err)
	}
	if err := fsx.WriteFile(r.sourcePath(name), b, 0o600); err != nil {
		return fmt.Errorf("remember kernel: %w", err)
	}
	return nil
}

//go:embed manifest.json
var manifestJSON []byte

// manifest is the built-in list of kernel packages, for systems without apt.
type manifest struct {
	Base     string                   `json:"base"`
	Packages map[string]manifestEntry `json:"packages"` // by architecture
}

type manifestEntry struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// pinned returns the package of the built-in list for arch. mirror replaces the base of its URL where it is not empty.
func pinned(arch, mirror string) (pkg, string, error) {
	var m manifest
	if err := json.Unmarshal(manifestJSON, &m); err != nil {
		return pkg{}, "", fmt.Errorf("read built-in list of kernels: %w", err)
	}
	e, ok := m.Packages[arch]
	if !ok {
		return pkg{}, "", fmt.Errorf("built-in list of kernels: architecture %s: %w", arch, errs.ErrUnsupported)
	}
	if mirror == "" {
		mirror = m.Base
	}
	return pkg{SHA256: e.SHA256, Size: e.Size, Name: path.Base(e.Path)}, strings.TrimRight(mirror, "/") + "/" + e.Path, nil
}
