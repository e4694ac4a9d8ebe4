package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// Bounds of an image archive. The largest images have a few hundred files.
const (
	maxMembers  = 20_000
	smallMember = 64 << 10 // kept in memory, as far as maxMemory goes
	maxMemory   = 16 << 20
)

// isReference tells a reference from a bare tag, which the annotation of an OCI layout may be.
func isReference(ref string) bool { return strings.ContainsAny(ref, "/:@") }

// layoutDir is an OCI layout on disk. os.Root keeps symbolic links from leading out of it.
type layoutDir struct {
	s    *Store
	root *os.Root
}

func (d *layoutDir) close() error { return nil }

func (d *layoutDir) open(name string) (*os.File, int64, error) {
	info, err := d.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s: %w", name, errs.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open: %w", err)
	}
	if !info.Mode().IsRegular() { // a fifo would block
		return nil, 0, fmt.Errorf("%s is no regular file: %w", name, errs.ErrInvalid)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("open: %w", err)
	}
	return f, info.Size(), nil
}

func (d *layoutDir) read(name string, limit int64) ([]byte, error) {
	f, _, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readLimited(f, name, limit)
}

func readLimited(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %.100q: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%.100q has more than %d bytes: %w", name, limit, errs.ErrInvalid)
	}
	return data, nil
}

func (d *layoutDir) keep(ctx context.Context, name string, want digest.Digest, size int64) (digest.Digest, int64, error) {
	if want != "" {
		if info, err := d.s.blobs.Info(ctx, want); err == nil {
			return want, info.Size, nil
		}
	}
	f, has, err := d.open(name)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }()
	if has > d.s.cfg.Limits.BlobSize {
		return "", 0, fmt.Errorf("%.100q has %d bytes, at most %d: %w", name, has, d.s.cfg.Limits.BlobSize, errs.ErrInvalid)
	}
	w, err := d.s.blobs.writer()
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = w.Close() }()
	n, err := io.Copy(struct{ io.Writer }{w}, &source{ctx: ctx, r: io.LimitReader(f, has)})
	if err != nil {
		return "", 0, fmt.Errorf("copy %.100q: %w", name, err)
	}
	if size >= 0 && n != size {
		return "", 0, fmt.Errorf("%.100q has %d bytes instead of %d: %w", name, n, size, errs.ErrCorrupt)
	}
	got := w.Digest()
	if err := w.Commit(ctx, 0, want); err != nil {
		return "", 0, err
	}
	return got, n, nil
}

// tarArchive is an image archive that has been read to its end: its files are in the session, not yet visible.
type tarArchive struct {
	s      *Store
	files  map[string]*member
	links  map[string]string // symbolic and hard links: old Docker archives share layers by them
	memory int64             // taken by small files
}

type member struct {
	mu     sync.Mutex
	data   []byte      // of a small file
	w      *blobWriter // of a large one, nil once it is committed
	digest digest.Digest
	size   int64
}

// readArchive reads an archive to its end. The result must be closed.
func (s *Store) readArchive(ctx context.Context, r io.Reader) (archive, error) {
	a := &tarArchive{s: s, files: map[string]*member{}, links: map[string]string{}}
	src := &source{ctx: ctx, r: r}
	if err := a.readAll(src); err != nil {
		_ = a.close()
		if src.err != nil {
			return nil, fmt.Errorf("read archive: %w", src.err)
		}
		if errs.Code(err) == "" && !isWriteError(err) {
			err = fmt.Errorf("%w (%w)", err, errs.ErrCorrupt)
		}
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return a, nil
}

// isWriteError tells an error of the store's own files from one of the archive.
func isWriteError(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p)
}

func (a *tarArchive) readAll(src io.Reader) error {
	r, err := uncompressed(src)
	if err != nil {
		return err
	}
	// A compressed archive may be far larger than the file it comes in.
	limit := a.s.cfg.Limits.BlobSize
	total := 4 * limit
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if n == 0 && errors.Is(err, tar.ErrHeader) {
				return fmt.Errorf("%w: it is no tar archive (%w)", err, errs.ErrInvalid)
			}
			return err
		}
		if n > maxMembers {
			return fmt.Errorf("more than %d files: %w", maxMembers, errs.ErrInvalid)
		}
		if total -= h.Size; h.Size > limit || total < 0 {
			return fmt.Errorf("%.100q has %d bytes, raise the limit if that is right: %w", h.Name, h.Size, errs.ErrInvalid)
		}
		if err := a.add(h, tr); err != nil {
			return err
		}
	}
	// What follows the end marker tells a whole compressed stream from a truncated one.
	if _, err := io.Copy(io.Discard, io.LimitReader(r, 64<<20)); err != nil {
		return err
	}
	return nil
}

// uncompressed returns an archive's tar stream.
func uncompressed(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(2)
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("empty archive: %w", errs.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	if magic[0] == 0x1f && magic[1] == 0x8b {
		return gzip.NewReader(br)
	}
	return br, nil
}

func (a *tarArchive) add(h *tar.Header, r io.Reader) error {
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	name := strings.Join(parts, "/")
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		a.links[name] = path.Join(path.Dir(name), h.Linkname)
		return nil
	case tar.TypeLink:
		a.links[name] = h.Linkname
		return nil
	default:
		return nil
	}
	if old := a.files[name]; old != nil && old.w != nil { // the last of a name counts
		_ = old.w.Close()
	}
	if h.Size <= smallMember && a.memory+h.Size <= maxMemory {
		a.memory += h.Size
		data, err := readLimited(r, name, smallMember)
		if err != nil {
			return err
		}
		if int64(len(data)) != h.Size {
			return io.ErrUnexpectedEOF
		}
		a.files[name] = &member{data: data, digest: digest.FromBytes(data), size: h.Size}
		return nil
	}
	w, err := a.s.blobs.writer()
	if err != nil {
		return err
	}
	a.files[name] = &member{w: w, size: h.Size}
	if _, err := io.Copy(struct{ io.Writer }{w}, r); err != nil {
		return err
	}
	a.files[name].digest = w.Digest()
	return w.park()
}

func (a *tarArchive) find(name string) (*member, error) {
	for range maxHops {
		parts, err := split(name)
		if err != nil {
			return nil, err
		}
		clean := strings.Join(parts, "/")
		if m := a.files[clean]; m != nil {
			return m, nil
		}
		next, ok := a.links[clean]
		if !ok {
			return nil, fmt.Errorf("%.100q: %w", name, errs.ErrNotFound)
		}
		name = next
	}
	return nil, fmt.Errorf("%.100q is a loop of links: %w", name, errs.ErrInvalid)
}

func (a *tarArchive) read(name string, limit int64) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.size > limit {
		return nil, fmt.Errorf("%.100q has %d bytes, at most %d: %w", name, m.size, limit, errs.ErrInvalid)
	}
	switch {
	case m.data != nil || m.size == 0:
		return m.data, nil
	case m.w == nil:
		return a.s.blobs.read(m.digest, limit)
	}
	f, err := os.Open(m.w.f.Name())
	if err != nil {
		return nil, fmt.Errorf("read %.100q: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	return readLimited(f, name, limit)
}

func (a *tarArchive) keep(ctx context.Context, name string, want digest.Digest, _ int64) (digest.Digest, int64, error) {
	m, err := a.find(name)
	if err != nil {
		return "", 0, err
	}
	if want != "" && want != m.digest {
		return "", 0, fmt.Errorf("%.100q has digest %s instead of %s: %w", name, m.digest, want, errs.ErrCorrupt)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data != nil || m.size == 0 {
		_, err := a.s.blobs.write(ctx, m.data)
		return m.digest, m.size, err
	}
	if m.w == nil {
		return m.digest, m.size, nil
	}
	if _, err := a.s.blobs.Info(ctx, m.digest); err == nil {
		return m.digest, m.size, nil
	}
	err = m.w.Commit(ctx, 0, m.digest)
	m.w = nil
	return m.digest, m.size, err
}

// close discards what was not kept.
func (a *tarArchive) close() error {
	var all []error
	for _, m := range a.files {
		if m.w != nil {
			all = append(all, m.w.Close())
		}
	}
	return errors.Join(all...)
}
