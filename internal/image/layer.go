package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// layerTrailer is the last block of a layer image, behind the file system. It tells a whole image from a damaged one.
type layerTrailer struct {
	DiffID digest.Digest `json:"diff_id"`
	Size   int64         `json:"size"`   // of the file system in bytes
	CRC32C uint32        `json:"crc32c"` // of the file system
}

const trailerMagic = "arcbox layer 1\n"

// layerStamp is what a layer image looked like when its checksum was verified.
type layerStamp struct {
	size  int64
	mtime time.Time
}

// Layers returns the layer images of an image, lowest first. Those that are missing or damaged are made again from their
// blobs; where a blob is gone too the error wraps errs.ErrNotFound and the image has to be pulled or loaded again. The
// checksum of each layer image is verified when a Store first returns it.
func (s *Store) Layers(ctx context.Context, img Image) ([]LayerDisk, error) {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return nil, err
	}
	defer end()
	disks := make([]LayerDisk, len(img.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Limits.Parallel)
	for i, l := range img.Layers {
		g.Go(func() error {
			d, err := s.ensureLayer(gctx, l)
			disks[i] = d
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("layers of image %s: %w", img.ID, err)
	}
	return disks, nil
}

func (s *Store) layerPath(diffID digest.Digest) (string, error) {
	if err := checkDigest(diffID); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, "layers", diffID.Encoded()+"-"+strconv.Itoa(converterVersion)+".ext4"), nil
}

// ensureLayer returns the image of a layer and makes it from the blob where need be.
func (s *Store) ensureLayer(ctx context.Context, l LayerInfo) (LayerDisk, error) {
	if d, err := s.findLayer(ctx, l.DiffID); err == nil || !missing(err) {
		return d, err
	}
	unlock, err := s.lockWork(ctx, "layer-"+l.DiffID.Encoded())
	if err != nil {
		return LayerDisk{}, err
	}
	defer unlock()
	if d, err := s.findLayer(ctx, l.DiffID); err == nil || !missing(err) {
		return d, err
	}
	if err := s.convertBlob(ctx, l); err != nil {
		return LayerDisk{}, err
	}
	return s.findLayer(ctx, l.DiffID)
}

// missing tells whether an error of findLayer is mended by making the image again.
func missing(err error) bool {
	return errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrCorrupt)
}

// convertBlob makes a layer image from the stored blob. The caller holds the layer's lock.
func (s *Store) convertBlob(ctx context.Context, l LayerInfo) error {
	open := func() (io.ReadCloser, error) { return s.blobs.reader(l.Digest) }
	r, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	err = s.makeLayer(ctx, l.DiffID, r, open)
	if errors.Is(err, errs.ErrCorrupt) {
		// The blob was verified when it came. Unless it has changed since, the image itself is wrong.
		if verr := s.verifyBlob(ctx, l.Digest); verr != nil {
			return verr
		}
	}
	return err
}

// verifyBlob reads a blob and removes it where its content is not what its digest says.
func (s *Store) verifyBlob(ctx context.Context, d digest.Digest) error {
	r, err := s.blobs.reader(d)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	h := digest.SHA256.Hash()
	if _, err := io.Copy(h, &source{ctx: ctx, r: r}); err != nil {
		return fmt.Errorf("read blob %s: %w", d, err)
	}
	if digest.NewDigest(digest.SHA256, h) != d {
		return s.blobs.corrupt(d)
	}
	return nil
}

// makeLayer writes the layer image of the content r yields and makes it visible.
func (s *Store) makeLayer(ctx context.Context, diffID digest.Digest, r io.Reader, again rewinder) error {
	path, err := s.layerPath(diffID)
	if err != nil {
		return err
	}
	if err := s.lease(ctx, diffID); err != nil {
		return err
	}
	f, err := fsx.CreateIn(s.blobs.session, path, 0o400)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	w := &sparseFile{f: f.File}
	lost, err := convert(ctx, r, again, diffID, s.cfg.Limits, w)
	if err != nil {
		return fmt.Errorf("convert layer %s: %w", diffID, err)
	}
	if err := w.finish(diffID, lost); err != nil {
		return fmt.Errorf("finish image of layer %s: %w", diffID, err)
	}
	if err := writeTrailer(ctx, f.File, w.end, diffID); err != nil {
		return fmt.Errorf("finish image of layer %s: %w", diffID, err)
	}
	if err := f.Commit(); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		s.remember(path, info)
	}
	return nil
}

func writeTrailer(ctx context.Context, f *os.File, size int64, diffID digest.Digest) error {
	sum, err := checksum(ctx, f, size)
	if err != nil {
		return err
	}
	data, err := json.Marshal(layerTrailer{DiffID: diffID, Size: size, CRC32C: sum})
	if err != nil {
		return err
	}
	block := make([]byte, blockSize)
	copy(block, append([]byte(trailerMagic), data...))
	_, err = f.WriteAt(block, size)
	return err
}

func checksum(ctx context.Context, f io.ReaderAt, size int64) (uint32, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	r := &source{ctx: ctx, r: io.NewSectionReader(f, 0, size)}
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
		return 0, fmt.Errorf("read layer image: %w", err)
	}
	return h.Sum32(), nil
}

// findLayer returns a layer image that is there and whole. Otherwise the error wraps errs.ErrNotFound or errs.ErrCorrupt.
func (s *Store) findLayer(ctx context.Context, diffID digest.Digest) (LayerDisk, error) {
	path, err := s.layerPath(diffID)
	if err != nil {
		return LayerDisk{}, err
	}
	if err := s.lease(ctx, diffID); err != nil {
		return LayerDisk{}, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return LayerDisk{}, fmt.Errorf("image of layer %s: %w", diffID, errs.ErrNotFound)
	}
	if err != nil {
		return LayerDisk{}, fmt.Errorf("open layer image: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return LayerDisk{}, fmt.Errorf("open layer image: %w", err)
	}
	disk := LayerDisk{DiffID: diffID, Serial: serial(diffID), Path: path, Size: info.Size()}
	if s.remembers(path, info) {
		return disk, nil
	}
	if err := checkLayer(ctx, f, info.Size(), diffID); err != nil {
		s.log.Warn("layer image is made again", "path", path, "err", err)
		return LayerDisk{}, err
	}
	s.remember(path, info)
	return disk, nil
}

func checkLayer(ctx context.Context, f *os.File, size int64, diffID digest.Digest) error {
	damage := func(what string) error { return fmt.Errorf("layer image %s %s: %w", f.Name(), what, errs.ErrCorrupt) }
	if size < 2*blockSize {
		return damage("is too short")
	}
	block := make([]byte, blockSize)
	if _, err := f.ReadAt(block, size-blockSize); err != nil {
		return fmt.Errorf("read layer image: %w", err)
	}
	data, ok := strings.CutPrefix(string(bytes.TrimRight(block, "\x00")), trailerMagic)
	var t layerTrailer
	if !ok || json.Unmarshal([]byte(data), &t) != nil || t.Size != size-blockSize || t.DiffID != diffID {
		return damage("has no trailer of its own")
	}
	sum, err := checksum(ctx, f, t.Size)
	if err != nil {
		return err
	}
	if sum != t.CRC32C {
		return damage("has another checksum than when it was made")
	}
	return nil
}

func (s *Store) remember(path string, info fs.FileInfo) {
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	s.seen[path] = layerStamp{size: info.Size(), mtime: info.ModTime()}
}

func (s *Store) remembers(path string, info fs.FileInfo) bool {
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	return s.seen[path] == layerStamp{size: info.Size(), mtime: info.ModTime()}
}
