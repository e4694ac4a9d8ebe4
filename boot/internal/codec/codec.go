// Package codec reads the compressed forms in which kernels, modules and packages come. Every reader has bounded memory
// and no goroutine of its own.
package codec

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Format is a form of compression.
type Format string

// The formats. LZ4 covers its frame format and the legacy one that kernels use.
const (
	None  Format = ""
	Gzip  Format = "gzip"
	XZ    Format = "xz"
	Zstd  Format = "zstd"
	LZ4   Format = "lz4"
	Bzip2 Format = "bzip2"
	LZMA  Format = "lzma"
	LZO   Format = "lzo" // recognised, not readable
)

// window bounds the memory of a decoder in bytes: the window of zstd --ultra -22, with which kernels are packed. The
// largest xz dictionary found in the field is half of it.
const window = 128 << 20

var magics = []struct {
	magic  string
	format Format
}{
	{"\x1f\x8b", Gzip},
	{"\xfd7zXZ\x00", XZ},
	{"\x28\xb5\x2f\xfd", Zstd},
	{"\x02\x21\x4c\x18", LZ4},
	{"\x04\x22\x4d\x18", LZ4},
	{"BZh", Bzip2},
	{"\x89LZO\x00", LZO},
	{"\x5d\x00\x00", LZMA},
}

// Detect tells the format of data that begins with head, None where it knows none. Eight bytes are enough.
func Detect(head []byte) Format {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format
		}
	}
	return None
}

// NewReader returns what r holds, decompressed. Errors in the data wrap ErrCorrupt; a format it cannot read is
// ErrUnsupported. The caller closes the reader, which does not close r.
func NewReader(r io.Reader, f Format) (io.ReadCloser, error) {
	d, err := open(r, f)
	if err != nil {
		if f == LZO {
			return nil, err
		}
		return nil, fmt.Errorf("%w %s data: %w", errs.ErrCorrupt, f, err)
	}
	return &reader{d, f}, nil
}

func open(r io.Reader, f Format) (io.Reader, error) {
	switch f {
	case None:
		return r, nil
	case Gzip:
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false) // kernels have other bytes behind the stream
		}
		return z, err
	case XZ:
		// Its dictionary grows to what the data declares, up to the bound, so a lie costs address space only.
		return xz.NewReader(r, window)
	case Zstd:
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
	case LZ4:
		return lz4.NewReader(r), nil
	case Bzip2:
		return bzip2.NewReader(r), nil
	case LZMA:
		return lzma.ReaderConfig{DictCap: window}.NewReader(r)
	}
	return nil, fmt.Errorf("%s compression: %w", f, errs.ErrUnsupported)
}

type reader struct {
	r io.Reader
	f Format
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF && r.f != None {
		err = fmt.Errorf("%w %s data: %w", errs.ErrCorrupt, r.f, err)
	}
	return n, err
}

// Close releases the decoder.
func (r *reader) Close() error {
	if z, ok := r.r.(*zstd.Decoder); ok {
		z.Close()
	}
	return nil
}
