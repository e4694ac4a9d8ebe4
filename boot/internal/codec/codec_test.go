package codec_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

var packable = []codec.Format{codec.Gzip, codec.XZ, codec.Zstd, codec.LZ4, codec.LZMA}

func read(data []byte) ([]byte, error) { return readAtMost(data, 64<<20) }

func readAtMost(data []byte, limit int64) ([]byte, error) {
	r, err := codec.NewReader(bytes.NewReader(data), codec.Detect(data))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, limit))
	return out, errors.Join(err, r.Close())
}

func TestEachFormatIsDetectedAndRead(t *testing.T) {
	want := bytes.Repeat([]byte("a kernel has many equal parts, "), 10_000)
	for _, f := range packable {
		t.Run(string(f), func(t *testing.T) {
			packed := fixture.Pack(f, want)
			require.Equal(t, f, codec.Detect(packed))
			got, err := read(packed)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
	got, err := read(want)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "plain data stays as it is")
}

// machineCode returns calls of one function from many places, which is what a BCJ filter changes.
func machineCode() []byte {
	var b []byte
	for range 3000 {
		b = append(b, 0x55, 0xe8)
		b = binary.LittleEndian.AppendUint32(b, uint32(100-(len(b)+4)))
	}
	return b
}

// The files were packed by xz --check=crc32 --x86 --lzma2, as kernels are, and by bzip2.
func TestFilesOfTheRealToolsAreRead(t *testing.T) {
	for _, name := range []string{"testdata/code.bcj.xz", "testdata/code.bz2"} {
		packed, err := os.ReadFile(name)
		require.NoError(t, err)
		got, err := read(packed)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(machineCode(), got), name)
	}
}

func TestBrokenDataIsCorrupt(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 5_000)
	for _, f := range packable {
		t.Run(string(f), func(t *testing.T) {
			packed := fixture.Pack(f, want)
			_, err := read(packed[:len(packed)/2])
			require.ErrorIs(t, err, errs.ErrCorrupt)
		})
	}
}

func TestLZOIsUnsupported(t *testing.T) {
	_, err := read([]byte("\x89LZO\x00\r\n\x1a\n"))
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.NotErrorIs(t, err, errs.ErrCorrupt)
}

func FuzzReader(f *testing.F) {
	for _, p := range packable {
		f.Add(fixture.Pack(p, []byte("seed seed seed seed")))
	}
	bcj, err := os.ReadFile("testdata/code.bcj.xz")
	require.NoError(f, err)
	f.Add(bcj)
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = readAtMost(data, 1<<20) // neither panic nor hang
	})
}
