package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/boot/internal/kimage"
	"github.com/arcboxlabs/arcbox-go/boot/internal/kmod"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The names in a kernel entry.
const (
	kernelName = "kernel"  // plain
	modulesDir = "modules" // the chosen modules below it, uncompressed
)

// kernelLayout is part of the key of every kernel entry: a change here makes new entries from cached packages.
const kernelLayout = "kernel 1"

// maxPacked bounds a packed kernel in bytes.
const maxPacked = 256 << 20

// kernelMeta is what the record of a kernel entry says.
type kernelMeta struct {
	Release string       `json:"release"`
	Source  string       `json:"source"`
	Modules []moduleMeta `json:"modules,omitempty"` // in the order in which they load
	Builtin []string     `json:"builtin,omitempty"` // those of the wanted modules that the kernel has built in
}

type moduleMeta struct {
	Name    string       `json:"name"`
	Stage   bootfs.Stage `json:"stage"`
	Path    string       `json:"path"` // relative to the release's directory, uncompressed
	Deps    []string     `json:"deps,omitempty"`
	Aliases []string     `json:"aliases,omitempty"`
}

// wantedModules are the modules a guest needs, in the order of loading. Each one of the stages early and late costs some
// milliseconds of every boot, so each has its reason. What the kernel has built in or does not have is left out, unless
// it is required.
func wantedModules() []kmod.Want {
	return []kmod.Want{
		// The agent answers on a virtio-serial port, a device on PCI.
		{Name: "virtio_pci", Stage: bootfs.Early, Required: true},
		{Name: "virtio_console", Stage: bootfs.Early, Required: true},

		{Name: "virtio_scsi", Stage: bootfs.Late, Required: true}, // image layers are hot-added SCSI disks
		{Name: "sd_mod", Stage: bootfs.Late, Required: true},
		{Name: "ext4", Stage: bootfs.Late, Required: true},    // what is on them
		{Name: "overlay", Stage: bootfs.Late, Required: true}, // the root of a container
		{Name: "virtio_net", Stage: bootfs.Late},              // networks are VLANs on it, and a container has a macvlan there
		{Name: "8021q", Stage: bootfs.Late},
		{Name: "macvlan", Stage: bootfs.Late},
		{Name: "virtio_balloon", Stage: bootfs.Late}, // free memory goes back to the host
		{Name: "virtio_rng", Stage: bootfs.Late},     // entropy, before a container asks for it
		{Name: "vmw_vsock_virtio_transport", Stage: bootfs.Late},
		{Name: "vsock_loopback", Stage: bootfs.Late}, // the agent's own check of AF_VSOCK

		// Present for what asks for them, at no cost but their size.
		{Name: "virtio_blk", Stage: bootfs.Demand},
		{Name: "virtio_mmio", Stage: bootfs.Demand},
		{Name: "virtiofs", Stage: bootfs.Demand},
		{Name: "vmgenid", Stage: bootfs.Demand},
		{Name: "loop", Stage: bootfs.Demand},
		{Name: "fuse", Stage: bootfs.Demand},
		{Name: "erofs", Stage: bootfs.Demand},
		{Name: "binfmt_misc", Stage: bootfs.Demand},
		{Name: "af_packet", Stage: bootfs.Demand},
		{Name: "veth", Stage: bootfs.Demand},
		{Name: "crc32c_generic", Stage: bootfs.Demand},
		{Name: "libcrc32c", Stage: bootfs.Demand},
	}
}

// kernelKey makes the key of a kernel entry from what determines its content besides the code.
func (r *resolver) kernelKey(parts ...string) string {
	parts = append(parts, kernelLayout, r.cfg.Arch)
	for _, w := range wantedModules() {
		parts = append(parts, w.Name, string(w.Stage))
	}
	return r.cfg.Arch + "-" + digest(parts...)[:32]
}

// kernel returns the kernel entry that Config asks for.
func (r *resolver) kernel(ctx context.Context) (*entry, error) {
	switch {
	case r.cfg.Kernel != "":
		return r.kernelFromFiles(ctx)
	case r.cfg.URL != "":
		return r.kernelFromURL(ctx, r.cfg.URL, r.cfg.SHA256, 0)
	case r.cfg.Image != "":
		return r.kernelFromImage(ctx)
	}
	return r.kernelFromSystem(ctx)
}

// kernelFiles is a kernel as its source has it.
type kernelFiles struct {
	kernel  string // path of the packed kernel
	modules string // directory of its modules, "" for none
	release string
	source  string
}

// kernelFromFiles makes an entry of the files Config names. Its key holds size and time of each, so files that change
// make another entry.
func (r *resolver) kernelFromFiles(ctx context.Context) (*entry, error) {
	files := kernelFiles{source: "file " + r.cfg.Kernel}
	parts := []string{"files"}
	add := func(p string, info fs.FileInfo) {
		parts = append(parts, p, fmt.Sprint(info.Size()), fmt.Sprint(info.ModTime().UnixNano()))
	}
	var err error
	if files.kernel, err = filepath.Abs(r.cfg.Kernel); err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	info, err := os.Stat(files.kernel)
	if err != nil {
		return nil, fmt.Errorf("find kernel: %w", notFound(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("find kernel: %w: %s is no regular file", errs.ErrInvalid, files.kernel)
	}
	add(files.kernel, info)
	if r.cfg.Modules != "" {
		if files.modules, err = filepath.Abs(r.cfg.Modules); err != nil {
			return nil, fmt.Errorf("find modules: %w", err)
		}
		files.release = filepath.Base(files.modules)
		err = filepath.WalkDir(files.modules, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				add(p, info)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("find modules: %w", notFound(err))
		}
	}
	return r.store.obtain(ctx, kindKernel, r.kernelKey(parts...), func(ctx context.Context, dir string) (any, error) {
		return r.makeKernel(ctx, dir, files)
	})
}

// notFound makes a missing file an ErrNotFound.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errs.ErrNotFound, err)
	}
	return err
}

// makeKernel fills a kernel entry.
func (r *resolver) makeKernel(ctx context.Context, dir string, files kernelFiles) (*kernelMeta, error) {
	if err := unpackKernel(ctx, filepath.Join(dir, kernelName), files.kernel, r.cfg.Arch); err != nil {
		return nil, fmt.Errorf("%s: %w", files.source, err)
	}
	meta := &kernelMeta{Release: files.release, Source: files.source}
	if files.modules == "" {
		return meta, nil
	}
	if err := copyModules(ctx, filepath.Join(dir, modulesDir), files.modules, meta); err != nil {
		return nil, fmt.Errorf("%s: %w", files.source, err)
	}
	return meta, nil
}

func unpackKernel(ctx context.Context, dst, src, arch string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open kernel: %w", notFound(err))
	}
	defer func() { _ = in.Close() }()
	packed, err := io.ReadAll(io.LimitReader(&ctxReader{ctx, in}, maxPacked+1))
	if err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	if len(packed) > maxPacked {
		return fmt.Errorf("read kernel: %w: %s is larger than %d MiB", errs.ErrInvalid, src, maxPacked>>20)
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write kernel: %w", err)
	}
	defer func() { _ = out.Close() }()
	if err := kimage.Unpack(&ctxWriter{ctx, out}, packed, arch); err != nil {
		return err
	}
	if err := kimage.Check(out, arch); err != nil {
		return err
	}
	return out.Close()
}

// copyModules puts the wanted modules of a directory into dst and describes them in meta.
func copyModules(ctx context.Context, dst, src string, meta *kernelMeta) error {
	tree, err := kmod.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	wants := wantedModules()
	for _, w := range wants {
		if yes, _ := tree.Builtin(w.Name); yes {
			meta.Builtin = append(meta.Builtin, kmod.Normal(w.Name))
		}
	}
	mods, err := tree.Resolve(wants)
	if err != nil {
		return err
	}
	for _, m := range mods {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := m.Path[:strings.LastIndex(m.Path, ".ko")] + ".ko"
		p := filepath.Join(dst, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return fmt.Errorf("write module: %w", err)
		}
		if err := os.WriteFile(p, m.Content, 0o600); err != nil {
			return fmt.Errorf("write module: %w", err)
		}
		meta.Modules = append(meta.Modules, moduleMeta{Name: m.Name, Stage: m.Stage, Path: name, Deps: m.Deps, Aliases: m.Aliases})
	}
	return nil
}

// unpacker collects kernel and modules from archives into a directory, and leaves out the rest.
type unpacker struct {
	dir      string
	kernel   string // path of the kernel once it was found
	release  string // of the kernel
	releases []string
}

// visit is a deb.VisitFunc.
func (u *unpacker) visit(name string, size int64, r io.Reader) error {
	name = strings.TrimPrefix(name, "usr/")
	rest, isLib := strings.CutPrefix(name, "lib/modules/")
	if !isLib {
		base, isBoot := strings.CutPrefix(name, "boot/")
		for _, prefix := range []string{"vmlinuz-", "vmlinux-"} {
			if release, ok := strings.CutPrefix(base, prefix); isBoot && ok && !strings.Contains(release, "/") {
				return u.addKernel(release, size, r)
			}
		}
		return nil
	}
	release, file, ok := strings.Cut(rest, "/")
	switch {
	case !ok:
		return nil
	case file == "vmlinuz":
		return u.addKernel(release, size, r)
	case !strings.Contains(path.Base(file), ".ko") && file != "modules.builtin" && file != "modules.dep":
		return nil
	}
	if !slices.Contains(u.releases, release) {
		u.releases = append(u.releases, release)
	}
	return writeFile(filepath.Join(u.dir, "modules", release, filepath.FromSlash(file)), size, r)
}

func (u *unpacker) addKernel(release string, size int64, r io.Reader) error {
	if u.kernel != "" {
		if u.release == release {
			return nil
		}
		return fmt.Errorf("%w: the package has two kernels, %s and %s", errs.ErrInvalid, u.release, release)
	}
	if size > maxPacked {
		return fmt.Errorf("%w: the kernel is larger than %d MiB", errs.ErrInvalid, maxPacked>>20)
	}
	u.kernel, u.release = filepath.Join(u.dir, "vmlinuz"), release
	return writeFile(u.kernel, size, r)
}

// files returns what was collected.
func (u *unpacker) files(source string) (kernelFiles, error) {
	if u.kernel == "" {
		return kernelFiles{}, fmt.Errorf("%s: %w: no kernel in it (boot/vmlinuz-*)", source, errs.ErrInvalid)
	}
	f := kernelFiles{kernel: u.kernel, release: u.release, source: source}
	if u.release == "" && len(u.releases) == 1 {
		f.release = u.releases[0]
	}
	if slices.Contains(u.releases, f.release) {
		f.modules = filepath.Join(u.dir, "modules", f.release)
	} else if len(u.releases) > 0 {
		return kernelFiles{}, fmt.Errorf("%s: %w: kernel %s has no modules in it, others have (%s)", source, errs.ErrInvalid, f.release, strings.Join(u.releases, ", "))
	}
	return f, nil
}

func writeFile(p string, size int64, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := io.CopyN(f, r, size); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(p), err)
	}
	return f.Close()
}

// ctxWriter ends writing with the cause of its context.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *ctxWriter) Write(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	// A write of many megabytes is split, so that the end of the context is seen soon.
	total := 0
	for chunk := range slices.Chunk(p, 4<<20) {
		n, err := c.w.Write(chunk)
		total += n
		if err != nil {
			return total, err
		}
		if c.ctx.Err() != nil {
			return total, context.Cause(c.ctx)
		}
	}
	return total, nil
}
