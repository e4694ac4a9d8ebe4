package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
)

// packer writes the archive of a layer that comes from values.
type packer struct {
	ctx    context.Context
	view   *view
	src    LayerSource
	limits Limits
	w      *tar.Writer
	buf    []byte

	made  map[string]byte   // by final path: the type of what has been written
	dirs  map[string]string // by path as it was asked for: the path without links of the layers below
	bytes int64             // content so far
}

func newPacker(ctx context.Context, v *view, src LayerSource, l Limits, w io.Writer) *packer {
	return &packer{
		ctx: ctx, view: v, src: src, limits: l, w: tar.NewWriter(w), buf: make([]byte, 64<<10),
		made: map[string]byte{}, dirs: map[string]string{"": ""},
	}
}

// pack writes the whole archive.
func (p *packer) pack() error {
	parts, err := split(p.src.Dir)
	if err != nil {
		return fmt.Errorf("directory Dir of the source: %w", err)
	}
	root := strings.Join(parts, "/")
	if _, err := p.dir(root); err != nil {
		return err
	}
	if p.src.FS != nil {
		err = fs.WalkDir(p.src.FS, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return fmt.Errorf("read FS: %w", err)
			}
			return p.walked(path.Join(root, name), name, d)
		})
	} else {
		for _, name := range slices.Sorted(maps.Keys(p.src.Files)) {
			if err = p.file(root, name, p.src.Files[name]); err != nil {
				break
			}
		}
	}
	if err != nil {
		return err
	}
	return p.w.Close()
}

// header is that of something new, with the defaults of the source.
func (p *packer) header(kind byte, mode fs.FileMode) *tar.Header {
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: kind, Mode: int64(mode.Perm()), Uid: p.src.UID, Gid: p.src.GID, ModTime: p.src.ModTime,
	}
	for bit, tarBit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&bit != 0 {
			h.Mode |= tarBit
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(0, 0)
	}
	return h
}

// walked packs a file of FS.
func (p *packer) walked(target, name string, d fs.DirEntry) error {
	switch d.Type() {
	case fs.ModeDir:
		_, err := p.dir(strings.TrimPrefix(target, "."))
		return err
	case fs.ModeSymlink:
		to, err := fs.ReadLink(p.src.FS, name)
		if err != nil {
			return fmt.Errorf("read FS: %w", err)
		}
		h := p.header(tar.TypeSymlink, 0o777)
		h.Linkname = to
		return p.put(target, h, nil)
	case 0:
		f, err := p.src.FS.Open(name)
		if err != nil {
			return fmt.Errorf("read FS: %w", err)
		}
		return p.content(target, p.header(tar.TypeReg, 0), f)
	}
	return fmt.Errorf("%.100q is neither a directory nor a regular file nor a symbolic link: %w", name, errs.ErrInvalid)
}

// file packs a file of Files.
func (p *packer) file(root, name string, f LayerFile) error {
	parts, err := split(name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return fmt.Errorf("file %q has no name: %w", name, errs.ErrInvalid)
	}
	target := path.Join(root, strings.Join(parts, "/"))
	h := p.header(tar.TypeReg, f.Mode)
	if !f.ModTime.IsZero() {
		h.ModTime = f.ModTime
	}
	if f.UID != 0 {
		h.Uid = f.UID
	}
	if f.GID != 0 {
		h.Gid = f.GID
	}
	for k, v := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+k] = v
	}
	dir := f.Mode&fs.ModeDir != 0
	known := fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky | fs.ModeDir
	switch {
	case f.Mode&^known != 0:
		return fmt.Errorf("file %.100q has mode %s, only files, directories and, by Link, symbolic links can be made: %w", name, f.Mode, errs.ErrInvalid)
	case dir && (f.Data != nil || f.Path != "" || f.Link != ""), f.Link != "" && (f.Data != nil || f.Path != ""), f.Path != "" && f.Data != nil:
		return fmt.Errorf("file %.100q has more than one of Data, Path, Link and fs.ModeDir: %w", name, errs.ErrInvalid)
	case dir:
		h.Typeflag = tar.TypeDir
		return p.newDir(target, h)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		return p.put(target, h, nil)
	case f.Path != "":
		src, err := os.Open(f.Path)
		if err != nil {
			return fmt.Errorf("file %.100q: %w", name, err)
		}
		return p.content(target, h, src)
	}
	h.Size = int64(len(f.Data))
	setMode(h, f.Data)
	return p.put(target, h, bytes.NewReader(f.Data))
}

// content packs a regular file and closes it.
func (p *packer) content(target string, h *tar.Header, f fs.File) error {
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("file %.100q: %w", target, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("file %.100q is not a regular one: %w", target, errs.ErrInvalid)
	}
	h.Size = info.Size()
	head := make([]byte, len(elfMagic))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("file %.100q: %w", target, err)
	}
	setMode(h, head[:n])
	return p.put(target, h, io.MultiReader(bytes.NewReader(head[:n]), f))
}

const elfMagic = "\x7fELF"

// setMode gives a file that has no permissions those of its kind, which its first bytes tell.
func setMode(h *tar.Header, head []byte) {
	switch {
	case h.Mode&0o777 != 0:
	case bytes.HasPrefix(head, []byte(elfMagic)), bytes.HasPrefix(head, []byte("#!")):
		h.Mode |= 0o755
	default:
		h.Mode |= 0o644
	}
}

// put writes a file or link, and its parents before it.
func (p *packer) put(target string, h *tar.Header, content io.Reader) error {
	dir, base := path.Split(target)
	real, err := p.dir(path.Clean("/" + dir)[1:])
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("file %.100q: a name that begins with %q means a deletion in a layer; use Tar for these: %w", target, whiteoutPrefix, errs.ErrInvalid)
	}
	name := path.Join(real, base)
	if _, twice := p.made[name]; twice {
		return fmt.Errorf("file %.100q: %q is there already in this layer: %w", target, name, errs.ErrInvalid)
	}
	return p.write(name, h, content)
}

// newDir writes a directory that the caller described.
func (p *packer) newDir(target string, h *tar.Header) error {
	if h.Mode&0o777 == 0 {
		h.Mode |= 0o755
	}
	real, dirs, err := p.view.resolve(target)
	if err != nil {
		return err
	}
	name := strings.Join(real, "/")
	for i := range len(dirs) - 1 {
		if err := p.ensure(strings.Join(real[:i+1], "/"), dirs[i]); err != nil {
			return err
		}
	}
	if kind, ok := p.made[name]; ok && kind != tar.TypeDir {
		return fmt.Errorf("directory %.100q is a file of the same layer: %w", target, errs.ErrInvalid)
	}
	p.dirs[target] = name
	return p.write(name, h, nil)
}

// dir makes sure that a directory and its parents are in the layer, and returns its path without links.
func (p *packer) dir(target string) (string, error) {
	if real, ok := p.dirs[target]; ok {
		return real, nil
	}
	real, dirs, err := p.view.resolve(target)
	if err != nil {
		return "", err
	}
	for i, d := range dirs {
		if err := p.ensure(strings.Join(real[:i+1], "/"), d); err != nil {
			return "", err
		}
	}
	p.dirs[target] = strings.Join(real, "/")
	return p.dirs[target], nil
}

// ensure writes a directory, as the layers below have it or with the defaults, unless it has been written.
func (p *packer) ensure(name string, below *found) error {
	switch kind, ok := p.made[name]; {
	case ok && kind != tar.TypeDir:
		return fmt.Errorf("%.100q is a file of this layer and has files below it: %w", name, errs.ErrInvalid)
	case ok:
		return nil
	case below == nil:
		return p.write(name, p.header(tar.TypeDir, 0o755), nil)
	}
	h, err := dirHeader(below)
	if err != nil {
		return err
	}
	return p.emit(name, h, nil)
}

// dirHeader describes a directory of the layers below, so that the one above it is the same.
func dirHeader(d *found) (*tar.Header, error) {
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeDir, Mode: int64(d.Mode &^ ext4.TypeMask), Uid: int(d.UID), Gid: int(d.GID), ModTime: d.ModTime,
	}
	attrs, err := d.volume.Attrs(d.Inode)
	for k, v := range attrs {
		switch {
		case strings.HasPrefix(k, "system."):
			if v = xattrACL(v); v == "" {
				continue
			}
		case strings.HasPrefix(k, "trusted.overlay."):
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+k] = v
	}
	return h, err
}

// write writes what is new, once the caller has had its say.
func (p *packer) write(name string, h *tar.Header, content io.Reader) error {
	h.Name = name
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if p.src.Header != nil {
		was := *h
		if err := p.src.Header(h); err != nil {
			return fmt.Errorf("header of %.100q: %w", name, err)
		}
		if h.Name != was.Name || h.Typeflag != was.Typeflag || h.Size != was.Size || h.Linkname != was.Linkname {
			return fmt.Errorf("header of %.100q: Header changed its name, type, size or link, which it must not: %w", name, errs.ErrInvalid)
		}
	}
	return p.emit(name, h, content)
}

func (p *packer) emit(name string, h *tar.Header, content io.Reader) error {
	h.Name = name
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	p.made[name] = h.Typeflag
	p.bytes += h.Size
	switch {
	case len(p.made) > p.limits.LayerEntries:
		return fmt.Errorf("more than %d files, raise the limit if that is right: %w", p.limits.LayerEntries, errs.ErrInvalid)
	case p.bytes > p.limits.LayerSize:
		return fmt.Errorf("files hold more than %d bytes, raise the limit if that is right: %w", p.limits.LayerSize, errs.ErrInvalid)
	}
	if err := p.w.WriteHeader(h); err != nil {
		if isWriteError(err) {
			return err
		}
		return fmt.Errorf("file %.100q: %w (%w)", name, err, errs.ErrInvalid)
	}
	if content == nil {
		return context.Cause(p.ctx)
	}
	src := &source{ctx: p.ctx, r: content}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.w}, io.LimitReader(src, h.Size), p.buf)
	if err != nil {
		return fmt.Errorf("file %.100q: %w", name, err)
	}
	more, err := src.Read(p.buf[:1])
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("file %.100q: %w", name, err)
	}
	if n != h.Size || more > 0 {
		return fmt.Errorf("file %.100q changed its size of %d bytes while it was read: %w", name, h.Size, errs.ErrInvalid)
	}
	return nil
}
