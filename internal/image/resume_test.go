package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// bigLayer is an image of one layer whose blob is some 600 kB, and the digest of that.
func bigLayer(t testing.TB) (imagetest.Image, digest.Digest) {
	l := imagetest.Gzip(imagetest.Tar(t, imagetest.Entry{Name: "f", File: imagetest.File{Mode: 0o644, Data: noise(5, 600_000)}}))
	return imagetest.Image{Names: []string{"test/big:1"}, Layers: []imagetest.Layer{l}}, digest.FromBytes(l.Blob)
}

// watchRanges tells which range of the blob was asked for, each time.
func watchRanges(reg *imagetest.Registry, blob digest.Digest) (asked *[]string) {
	asked = &[]string{}
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+blob.String()) {
				*asked = append(*asked, r.Header.Get("Range"))
			}
			next.ServeHTTP(w, r)
		})
	})
	return asked
}

// flushing sends every write at once.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	_ = http.NewResponseController(f.ResponseWriter).Flush()
	return n, err
}

// halfPulled pulls the image into dir, and gives up after some 300 kB.
func halfPulled(t *testing.T, reg *imagetest.Registry, ref string, blob digest.Digest, dir string) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user left")
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !strings.HasSuffix(r.URL.Path, "/blobs/"+blob.String()):
				next.ServeHTTP(w, r)
			case r.Header.Get("Range") == "":
				next.ServeHTTP(&cutWriter{ResponseWriter: flushing{w}, left: 300_000}, r)
			default: // it has what was sent
				cancel(why)
				<-r.Context().Done()
			}
		})
	})
	s := openStore(t, func(c *Config) { c.Dir = dir })
	_, err := s.Pull(ctx, ref, PullOptions{})
	require.ErrorIs(t, err, why)
	requireTidy(t, s)
	require.NoError(t, s.Close())
	reg.Wrap(nil)
}

// TestPullGoesOnFromACancelledOne pulls in another Store of the directory, as another process would.
func TestPullGoesOnFromACancelledOne(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img, blob := bigLayer(t)
	ref := reg.Push(t, "app", "1", img)
	dir := filepath.Join(t.TempDir(), "images")
	halfPulled(t, reg, ref, blob, dir)
	require.FileExists(t, filepath.Join(dir, "partial", blob.Encoded()))

	asked := watchRanges(reg, blob)
	s := openStore(t, func(c *Config) { c.Dir = dir })
	got, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, img.ID(t), got.ID)
	require.Len(t, *asked, 1)
	require.Regexp(t, `^bytes=[123]\d{5}-`, (*asked)[0])
	requireTidy(t, s)
	require.NoFileExists(t, filepath.Join(dir, "partial", blob.Encoded()))
	disks, err := s.Layers(t.Context(), got)
	require.NoError(t, err)
	require.Equal(t, noise(5, 600_000), readExt4(t, disks[0].Path, "/f"))
}

// TestPullDoesNotTrustWhatWasLeft changes what a cancelled pull left: the next one finds out and begins anew.
func TestPullDoesNotTrustWhatWasLeft(t *testing.T) {
	img, blob := bigLayer(t)
	for name, change := range map[string]func([]byte) []byte{
		"other bytes": func(b []byte) []byte { b[200_000] ^= 1; return b },
		"zeros":       func(b []byte) []byte { return make([]byte, len(b)) },
		"too long":    func([]byte) []byte { return make([]byte, 1<<20) },
		"whole":       func([]byte) []byte { return img.Layers[0].Blob },
		"no archive":  func(b []byte) []byte { return noise(77, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			ref := reg.Push(t, "app", "1", img)
			s := openStore(t)
			left := filepath.Join(s.dir, "partial", blob.Encoded())
			require.NoError(t, os.WriteFile(left, change(append([]byte(nil), img.Layers[0].Blob[:300_000]...)), 0o600))
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			require.NoError(t, err)
			requireTidy(t, s)
			require.NoFileExists(t, left)
		})
	}
}

// TestOpenKeepsWhatADeadPullHas is about a process that was killed: its session stays without a lock.
func TestOpenKeepsWhatADeadPullHas(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img, blob := bigLayer(t)
	ref := reg.Push(t, "app", "1", img)
	dir := filepath.Join(t.TempDir(), "images")
	require.NoError(t, openStore(t, func(c *Config) { c.Dir = dir }).Close())
	dead := filepath.Join(dir, "ingest", "dead")
	require.NoError(t, os.Mkdir(dead, 0o700))
	for name, data := range map[string][]byte{
		"lock": nil, "blob-1": noise(1, 100_000), pullPrefix + "tiny": []byte("x"), pullPrefix + blob.Encoded(): img.Layers[0].Blob[:400_000],
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dead, name), data, 0o600))
	}
	s := openStore(t, func(c *Config) { c.Dir = dir })
	require.NoDirExists(t, dead)
	asked := watchRanges(reg, blob)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"bytes=400000-" + itoa(len(img.Layers[0].Blob)-1)}, *asked)
	requireTidy(t, s)
}

func TestPruneRemovesWhatBrokenPullsLeft(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img, blob := bigLayer(t)
	ref := reg.Push(t, "app", "1", img)
	dir := filepath.Join(t.TempDir(), "images")
	halfPulled(t, reg, ref, blob, dir)
	s := openStore(t, func(c *Config) { c.Dir = dir })
	p, err := s.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err)
	require.Equal(t, 1, p.Blobs)
	require.Greater(t, p.Bytes, int64(100_000))
	_, err = s.Get(t.Context(), ref)
	require.ErrorIs(t, err, errs.ErrNotFound)
}
