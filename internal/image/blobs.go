package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobStore is a content store in the sense of containerd's core/content, in the same layout as its local
// implementation, and safe between processes, which that one is not: every writer has a file of its own, in a directory
// that belongs to one open store and is locked by it. Content is visible once it is whole, durable and verified.
type blobStore struct {
	root    string
	session string // directory for what is being written
	unlock  func() // of the session
	leases  leases
}

var (
	_ content.Provider     = (*blobStore)(nil)
	_ content.InfoProvider = (*blobStore)(nil)
	_ content.Ingester     = (*blobStore)(nil)
	_ content.Writer       = (*blobWriter)(nil)
)

// open makes this store's session and removes those of processes that died.
func (b *blobStore) open() error {
	ingest := filepath.Join(b.root, "ingest")
	unlock, err := b.lockIngest(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(ingest)
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(ingest, e.Name())
		free, err := fsx.TryLock(filepath.Join(dir, "lock"), true)
		if err != nil {
			if !errors.Is(err, errs.ErrInUse) {
				_ = os.RemoveAll(dir)
			}
			continue
		}
		b.rescue(dir)
		err = os.RemoveAll(dir)
		free()
		if err != nil {
			return fmt.Errorf("remove what a dead process left: %w", err)
		}
	}
	b.session = filepath.Join(ingest, rand.Text())
	if err := os.Mkdir(b.session, 0o700); err != nil {
		return fmt.Errorf("make session: %w", err)
	}
	b.leases.gc, b.leases.path = filepath.Join(b.root, "locks", "gc"), filepath.Join(b.session, leaseFile)
	b.unlock, err = fsx.TryLock(filepath.Join(b.session, "lock"), true)
	return err
}

// lockIngest keeps a session that has its directory but not yet its lock, or not any more, from being taken for a dead
// one. It is held for a few system calls; the bound is for a holder that has been stopped.
func (b *blobStore) lockIngest(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return fsx.Lock(ctx, filepath.Join(b.root, "locks", "ingest"), true)
}

func (b *blobStore) close() error {
	defer b.unlock()
	if unlock, err := b.lockIngest(context.Background()); err == nil {
		defer unlock()
	}
	if err := os.RemoveAll(b.session); err != nil {
		return fmt.Errorf("remove session: %w", err)
	}
	return nil
}

func (b *blobStore) path(d digest.Digest) (string, error) {
	if err := checkDigest(d); err != nil {
		return "", err
	}
	return filepath.Join(b.root, "blobs", "sha256", d.Encoded()), nil
}

// checkDigest accepts what may become a path: sha256 and its 64 hexadecimal digits.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.80q: %w (%w)", string(d), err, errs.ErrInvalid)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.80q is not sha256: %w", string(d), errs.ErrUnsupported)
	}
	return nil
}

// Info returns size and time of a blob, or errs.ErrNotFound.
func (b *blobStore) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	path, err := b.path(d)
	if err != nil {
		return content.Info{}, err
	}
	if err := b.leases.take(ctx, d); err != nil {
		return content.Info{}, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return content.Info{}, fmt.Errorf("blob %s: %w", d, errs.ErrNotFound)
	}
	if err != nil {
		return content.Info{}, fmt.Errorf("look up blob: %w", err)
	}
	return content.Info{Digest: d, Size: info.Size(), CreatedAt: info.ModTime(), UpdatedAt: info.ModTime()}, nil
}

type blobReader struct {
	*os.File
	size int64
}

// Size returns the size of the blob in bytes.
func (r blobReader) Size() int64 { return r.size }

// ReaderAt opens a blob, or returns errs.ErrNotFound.
func (b *blobStore) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	return b.reader(desc.Digest)
}

func (b *blobStore) reader(d digest.Digest) (blobReader, error) {
	path, err := b.path(d)
	if err != nil {
		return blobReader{}, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return blobReader{}, fmt.Errorf("blob %s: %w", d, errs.ErrNotFound)
	}
	if err != nil {
		return blobReader{}, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return blobReader{}, fmt.Errorf("open blob: %w", err)
	}
	return blobReader{File: f, size: info.Size()}, nil
}

// read returns a small blob and checks its digest. One that does not have it is removed.
func (b *blobStore) read(d digest.Digest, limit int64) ([]byte, error) {
	r, err := b.reader(d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if r.size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are allowed: %w", d, r.size, limit, errs.ErrInvalid)
	}
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	if digest.FromBytes(data) != d {
		return nil, b.corrupt(d)
	}
	return data, nil
}

// corrupt removes a blob whose content is not what its name says, so that it is fetched again.
func (b *blobStore) corrupt(d digest.Digest) error {
	path, err := b.path(d)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %s was changed on disk and cannot be removed: %w (%w)", d, err, errs.ErrCorrupt)
	}
	return fmt.Errorf("blob %s was changed on disk and is removed, pull or load the image again: %w", d, errs.ErrCorrupt)
}

// write stores a small blob.
func (b *blobStore) write(ctx context.Context, data []byte) (digest.Digest, error) {
	w, err := b.writer()
	if err != nil {
		return "", err
	}
	defer func() { _ = w.Close() }()
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	d := w.Digest()
	return d, w.Commit(ctx, int64(len(data)), d)
}

// Writer starts a blob. The reference of the options tells writers apart in containerd's store; here all are apart.
func (b *blobStore) Writer(_ context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := b.writer()
	if err != nil {
		return nil, err
	}
	w.status.Ref, w.status.Total, w.status.Expected = o.Ref, o.Desc.Size, o.Desc.Digest
	return w, nil
}

func (b *blobStore) writer() (*blobWriter, error) {
	f, err := os.CreateTemp(b.session, "blob-*")
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return newBlobWriter(b, f), nil
}

func newBlobWriter(b *blobStore, f *os.File) *blobWriter {
	now := time.Now()
	return &blobWriter{b: b, f: f, hash: sha256.New(), status: content.Status{StartedAt: now, UpdatedAt: now}}
}

// blobWriter writes one blob. Its methods are called by one goroutine at a time, Status and Close by any.
type blobWriter struct {
	b    *blobStore
	f    *os.File
	hash hash.Hash

	mu     sync.Mutex
	status content.Status
	parked bool // f is closed for now
	done   bool
}

// park gives the file descriptor back until Commit.
func (w *blobWriter) park() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parked || w.done {
		return nil
	}
	w.parked = true
	if err := w.f.Close(); err != nil {
		return fmt.Errorf("write blob: %w", err)
	}
	return nil
}

// unpark opens the file again. The caller holds mu.
func (w *blobWriter) unpark() error {
	if !w.parked {
		return nil
	}
	f, err := os.OpenFile(w.f.Name(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open what was written of a blob: %w", err)
	}
	w.f, w.parked = f, false
	return nil
}

// Write appends to the blob.
func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.account(p[:n])
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// account takes what the file has more into digest and size.
func (w *blobWriter) account(p []byte) {
	w.hash.Write(p)
	w.mu.Lock()
	w.status.Offset += int64(len(p))
	w.status.UpdatedAt = time.Now()
	w.mu.Unlock()
}

// Digest returns the digest of what has been written so far.
func (w *blobWriter) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.hash) }

// Status returns how far the blob is.
func (w *blobWriter) Status() (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, nil
}

// Truncate empties the blob; size must be 0.
func (w *blobWriter) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("truncate blob to %d bytes: %w", size, errs.ErrUnsupported)
	}
	if err := w.f.Truncate(0); err != nil {
		return fmt.Errorf("truncate blob: %w", err)
	}
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("truncate blob: %w", err)
	}
	w.hash.Reset()
	w.mu.Lock()
	w.status.Offset = 0
	w.mu.Unlock()
	return nil
}

// Commit verifies size (0 is any) and digest ("" is any) and makes the blob visible. A blob that is there already is
// replaced by the same content. The writer is closed in every case.
func (w *blobWriter) Commit(ctx context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	defer func() { _ = w.Close() }()
	got := w.Digest()
	if st, _ := w.Status(); size > 0 && st.Offset != size {
		return fmt.Errorf("blob %s has %d bytes instead of %d: %w", got, st.Offset, size, errs.ErrCorrupt)
	}
	if expected != "" && expected != got {
		return fmt.Errorf("blob has digest %s instead of %s: %w", got, expected, errs.ErrCorrupt)
	}
	path, err := w.b.path(got)
	if err != nil {
		return err
	}
	if err := w.b.leases.take(ctx, got); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return fmt.Errorf("commit blob: %w", errs.ErrClosed)
	}
	if err := w.unpark(); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("sync blob: %w", err)
	}
	if err := w.f.Chmod(0o400); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("set mode of blob: %w", err)
	}
	w.done = true
	if err := errors.Join(w.f.Close(), os.Rename(w.f.Name(), path)); err != nil {
		return fmt.Errorf("commit blob: %w", errors.Join(err, os.RemoveAll(w.f.Name())))
	}
	return fsx.SyncDir(filepath.Dir(path))
}

// Close discards the blob if it was not committed.
func (w *blobWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	w.done = true
	var err error
	if !w.parked {
		err = w.f.Close()
	}
	if err := errors.Join(err, os.Remove(w.f.Name())); err != nil {
		return fmt.Errorf("discard blob: %w", err)
	}
	return nil
}
