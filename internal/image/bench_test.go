package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// realisticLayer is an archive of the shape of a small distribution: about 200 MB in 9,600 entries, most files small, a
// few large, half of the content compressible.
func realisticLayer(tb testing.TB) []byte {
	tb.Helper()
	var buf bytes.Buffer
	buf.Grow(220 << 20)
	w := tar.NewWriter(&buf)
	random, text := noise(7, 8<<20), bytes.Repeat([]byte("a line of text as it is found in files under usr/share\n"), 160_000)
	add := func(h *tar.Header, data []byte) {
		h.Mode, h.Size, h.ModTime = 0o755, int64(len(data)), time.Unix(1_700_000_000, 0)
		require.NoError(tb, w.WriteHeader(h))
		_, err := w.Write(data)
		require.NoError(tb, err)
	}
	for i := range 800 {
		dir := fmt.Sprintf("usr/share/package-%d/doc", i)
		add(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/"}, nil)
		for j := range 10 {
			size := 200 << ((i*7 + j*3) % 9)
			if i%40 == 0 && j == 0 {
				size = 6 << 20
			}
			data := text
			if j%2 == 0 {
				data = random
			}
			at := (i*131 + j*977) % (len(data) - size)
			add(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file-%d", dir, j)}, data[at:at+size])
		}
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: dir + "/link", Linkname: "file-0"}, nil)
	}
	require.NoError(tb, w.Close())
	return buf.Bytes()
}

// BenchmarkLayerConvert measures layer_convert_mb_s: bytes of the uncompressed archive per second, to a layer image that
// is complete on disk.
func BenchmarkLayerConvert(b *testing.B) {
	layer := realisticLayer(b)
	want := digest.FromBytes(layer)
	for name, blob := range map[string][]byte{"plain": layer, "gzip": imagetest.Gzip(layer).Blob, "zstd": imagetest.Zstd(b, layer).Blob} {
		b.Run(name, func(b *testing.B) {
			s := openStore(b)
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				require.NoError(b, s.makeLayer(b.Context(), want, bytes.NewReader(blob), nil))
			}
			b.ReportMetric(float64(len(layer))*float64(b.N)/b.Elapsed().Seconds()/1e6, "layer_convert_mb_s")
		})
	}
}

// TestConvertMemoryStaysSmall converts a layer that is far larger than what may be in memory.
func TestConvertMemoryStaysSmall(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer func() { _ = out.Close() }()
	pr, pw := io.Pipe()
	h := digest.SHA256.Digester()
	done := make(chan error, 1)
	go func() {
		w := tar.NewWriter(io.MultiWriter(pw, h.Hash()))
		chunk := noise(1, 1<<20)
		for i := range 200 {
			_ = w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Size: 2 << 20})
			_, _ = w.Write(chunk)
			_, _ = w.Write(chunk)
		}
		done <- pw.CloseWithError(w.Close())
	}()
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	watched := &watchReader{r: pr, every: 8 << 20, do: func() {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		most.Store(max(most.Load(), now.HeapInuse))
	}}
	// The digest is known only at the end, so the conversion fails there, and only there.
	_, err = convert(t.Context(), watched, nil, "sha256:none", Limits{}.withDefaults(), &sparseFile{f: out})
	require.NoError(t, <-done)
	require.ErrorContains(t, err, h.Digest().String())
	used := int64(most.Load()) - int64(before.HeapInuse)
	t.Logf("heap grew by %d MiB for 400 MiB", used>>20)
	require.Less(t, used, int64(64<<20))
}

type watchReader struct {
	r     io.Reader
	n     int
	every int
	do    func()
}

func (w *watchReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.n += n; w.n >= w.every {
		w.n = 0
		w.do()
	}
	return n, err
}

// BenchmarkFirstUse measures what a process waits for before its first container of an image that is in the store: the
// checksums of its layer images.
func BenchmarkFirstUse(b *testing.B) {
	layer := realisticLayer(b)
	s := openStore(b)
	img, err := s.Build(b.Context(), BuildSpec{Layers: []LayerSource{{Tar: bytes.NewReader(layer)}}})
	require.NoError(b, err)
	disks, err := s.Layers(b.Context(), img)
	require.NoError(b, err)
	b.SetBytes(disks[0].Size)
	for b.Loop() {
		clear(s.seen)
		_, err := s.Layers(b.Context(), img)
		require.NoError(b, err)
	}
}
