package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// converterVersion changes whenever the same layer would give another image, so that old images are not found any more.
const converterVersion = 1

// serial names a layer image to the guest: 95 bits of a hash, and a letter first.
func serial(diffID digest.Digest) string {
	sum := sha256.Sum256([]byte(diffID.String() + "/" + strconv.Itoa(converterVersion)))
	enc := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	return "l" + enc.EncodeToString(sum[:])[:19]
}

// decompress returns the content of a layer blob. What it is is told by its first bytes, since media types lie.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case isGzip(magic):
		return gzip.NewReader(br)
	case isZstd(magic):
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, fmt.Errorf("layer compressed with bzip2 or xz, only gzip and zstd are known: %w", errs.ErrUnsupported)
	}
	return io.NopCloser(br), nil
}

func isGzip(magic []byte) bool { return bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) }

func isZstd(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || len(magic) >= 4 && magic[0]&0xf0 == 0x50 && magic[1] == 0x2a && magic[2] == 0x4d && magic[3] == 0x18
}

// source is the reader at the bottom of a conversion. It obeys the context and remembers the first error of its own, so
// that a connection that breaks off is not taken for a damaged layer.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = context.Cause(s.ctx)
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// layerContent reads a layer uncompressed, hashes it and bounds its size.
type layerContent struct {
	src  *source
	body io.ReadCloser
	hash hash.Hash
	left int64
	max  int64
}

func openContent(ctx context.Context, r io.Reader, l Limits) (*layerContent, error) {
	src := &source{ctx: ctx, r: r}
	body, err := decompress(src)
	if err != nil {
		return nil, damaged(src, err)
	}
	// Headers, padding and the end marker come on top of what the files hold.
	total := l.LayerSize + int64(l.LayerEntries)*4096 + 1<<20
	return &layerContent{src: src, body: body, hash: sha256.New(), left: total, max: total}, nil
}

func (c *layerContent) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.body.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, fmt.Errorf("layer has more than %d bytes uncompressed, raise the limit if that is right: %w", c.max, errs.ErrInvalid)
	}
	c.hash.Write(p[:n])
	return n, err
}

// finish reads what follows the end of the archive and compares the digest.
func (c *layerContent) finish(want digest.Digest) error {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, c.hash); got != want {
		return fmt.Errorf("layer has DiffID %s, the image says %s: %w", got, want, errs.ErrCorrupt)
	}
	return nil
}

// damaged adds to the error of a conversion what it means: the source's own error stands for itself, the store's
// sentinels too, and the rest is a layer that cannot be read.
func damaged(src *source, err error) error {
	switch {
	case err == nil:
		return nil
	case src.err != nil:
		return fmt.Errorf("read layer: %w", src.err)
	case errors.Is(err, errReplan), errs.Code(err) != "":
		return err
	}
	return fmt.Errorf("layer cannot be read: %w (%w)", err, errs.ErrCorrupt)
}

// rewinder opens the blob of a layer once more.
type rewinder func() (io.ReadCloser, error)

// convert writes the file system of the layer that r yields, compressed or not, to w. again is used for archives that
// need a second pass; where it is nil such an archive gives errReplan and w holds garbage. lost is for
// finishing the image.
func convert(ctx context.Context, r io.Reader, again rewinder, want digest.Digest, l Limits, w io.ReadWriteSeeker) (lost lostState, err error) {
	lost, err = convertOnce(ctx, r, nil, want, l, w)
	if !errors.Is(err, errReplan) || again == nil {
		return lost, err
	}
	p, err := makePlan(ctx, again, l)
	if err != nil {
		return lostAbsent, err
	}
	r2, err := again()
	if err != nil {
		return lostAbsent, err
	}
	defer func() { _ = r2.Close() }()
	if err := rewind(w); err != nil {
		return lostAbsent, err
	}
	return convertOnce(ctx, r2, p, want, l, w)
}

func rewind(w io.ReadWriteSeeker) error {
	if t, ok := w.(interface{ Truncate(int64) error }); ok {
		if err := t.Truncate(0); err != nil {
			return fmt.Errorf("empty layer image: %w", err)
		}
	}
	_, err := w.Seek(0, io.SeekStart)
	return err
}

func makePlan(ctx context.Context, again rewinder, l Limits) (p *plan, err error) {
	r, err := again()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	c, err := openContent(ctx, r, l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.body.Close() }()
	defer recoverTo(&err)
	f := newFilter(l)
	defer l.gate.pass(ctx, f, c.src)()
	p, err = f.plan(tar.NewReader(c))
	return p, damaged(c.src, err)
}

// recoverTo turns a panic over hostile input, in a library below, into an error.
func recoverTo(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("layer makes the converter panic (%v): %w", v, errs.ErrInvalid)
	}
}

// convertOnce runs the filter and the image writer side by side.
func convertOnce(ctx context.Context, r io.Reader, p *plan, want digest.Digest, l Limits, w io.ReadWriteSeeker) (lost lostState, err error) {
	c, err := openContent(ctx, r, l)
	if err != nil {
		return lostAbsent, err
	}
	defer func() { _ = c.body.Close() }()
	f := newFilter(l)
	defer l.gate.pass(ctx, f, c.src)()
	pr, pw := io.Pipe()
	filtered := make(chan error, 1)
	go func() {
		err := filterLayer(c, f, p, want, pw)
		_ = pw.CloseWithError(err) // nil is the end of the archive
		filtered <- err
	}()
	werr := writeExt4(pr, l, w)
	if werr == nil {
		// The filter ends the archive and then still checks the digest.
		_, werr = io.Copy(io.Discard, pr)
	}
	_ = pr.CloseWithError(errStopped)
	switch ferr := <-filtered; {
	case ferr != nil && !errors.Is(ferr, errStopped):
		return lostAbsent, damaged(c.src, ferr)
	case werr != nil:
		return lostAbsent, fmt.Errorf("write layer image: %w", werr)
	}
	if p != nil {
		return p.lost, nil
	}
	return lostStateOf(f.tree.root), nil
}

var errStopped = errors.New("the image writer stopped")

func filterLayer(c *layerContent, f *filter, p *plan, want digest.Digest, pw io.Writer) (err error) {
	defer recoverTo(&err)
	bw := bufio.NewWriterSize(pw, 256<<10)
	tr, tw := tar.NewReader(c), tar.NewWriter(bw)
	if p == nil {
		err = f.stream(tr, tw)
	} else {
		err = p.write(f, tr, tw)
	}
	if err != nil {
		return err
	}
	if err := bw.Flush(); err != nil {
		return err
	}
	return c.finish(want)
}

func writeExt4(r io.Reader, l Limits, w io.ReadWriteSeeker) (err error) {
	defer recoverTo(&err)
	// Room for inodes, directories, and the padding of each file to a block.
	size := l.LayerSize + int64(l.LayerEntries)*8192 + 64<<20
	return tar2ext4.ConvertTarToExt4(r, w, tar2ext4.ConvertWhiteout, tar2ext4.MaximumDiskSize(size))
}
