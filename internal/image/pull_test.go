package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t testing.TB, mod ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "images"), Keychain: authn.NewMultiKeychain()}
	for _, m := range mod {
		m(&cfg)
	}
	s, err := Open(cfg)
	require.NoError(t, err)
	s.backoff = time.Millisecond
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// requireTidy checks that nothing half-done is in the store: no temporary file, no lock of a finished work, and every
// blob has its digest.
func requireTidy(t testing.TB, s *Store) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(s.dir, path)
		switch top, _, _ := strings.Cut(rel, string(filepath.Separator)); top {
		case "ingest":
			info, err := d.Info()
			require.NoError(t, err)
			if d.Name() != "lock" && (d.Name() != leaseFile || info.Size() > 0) {
				t.Errorf("left over: %s", rel)
			}
		case "locks":
			if strings.HasPrefix(d.Name(), "blob-") || strings.HasPrefix(d.Name(), "layer-") {
				t.Errorf("left over: %s", rel)
			}
		case "blobs":
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			if digest.FromBytes(data).Encoded() != d.Name() {
				t.Errorf("blob %s has another digest", rel)
			}
		default:
			if strings.HasPrefix(d.Name(), ".tmp-") {
				t.Errorf("left over: %s", rel)
			}
		}
		return nil
	}))
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// threeLayers is an image with a layer of each compression.
func threeLayers(t testing.TB) imagetest.Image {
	file := func(name string, data []byte) []byte {
		return imagetest.Tar(t, imagetest.Entry{Name: name, File: imagetest.File{Mode: 0o644, Data: data}})
	}
	return imagetest.Image{
		Names:  []string{"test/three:1"},
		Config: ocispec.ImageConfig{Cmd: []string{"/a"}, Env: []string{"A=b"}, User: "1:1", WorkingDir: "/w", StopSignal: "SIGINT", Labels: map[string]string{"k": "v"}},
		Layers: []imagetest.Layer{
			imagetest.Gzip(file("a", noise(1, 300_000))),
			imagetest.Zstd(t, file("b", noise(2, 200_000))),
			imagetest.Plain(file("c", noise(3, 100_000))),
		},
	}
}

func TestPullThenFindByEveryName(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := reg.Push(t, "team/app", "v1", img)
	s := openStore(t)
	got, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, img.ID(t), got.ID)
	require.Equal(t, []string{ref}, got.Names)
	require.Equal(t, img.Config, got.Config)
	require.Equal(t, digest.FromBytes(img.Manifest(t)), got.Manifest)
	require.Len(t, got.Layers, 3)
	short := got.ID.Encoded()[:12]
	for _, name := range []string{ref, got.ID.String(), got.ID.Encoded(), short, "sha256:" + short, reg.Host + "/team/app@" + got.Manifest.String()} {
		back, err := s.Get(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, got, back, name)
	}
	disks, err := s.Layers(t.Context(), got)
	require.NoError(t, err)
	require.Len(t, disks, 3)
	for i, d := range disks {
		require.Equal(t, got.Layers[i].DiffID, d.DiffID)
		require.Regexp(t, "^[a-z][a-z2-7]{19}$", d.Serial)
		require.Zero(t, d.Size%4096)
	}
	requireTidy(t, s)
}

func TestPullFetchesEachBlobOnce(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := reg.Push(t, "app", "latest", img)
	dir := filepath.Join(t.TempDir(), "images")
	var stores []*Store
	for range 3 {
		stores = append(stores, openStore(t, func(c *Config) { c.Dir = dir }))
	}
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			if _, err := stores[i%3].Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range img.Layers {
		require.Equal(t, 1, reg.BlobGets(digest.FromBytes(l.Blob)))
	}
	requireTidy(t, stores[0])
}

func TestPullReportsEachLayer(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := reg.Push(t, "app", "latest", img)
	s := openStore(t)
	for _, want := range []LayerState{LayerDone, LayerExists} {
		last := map[digest.Digest]LayerProgress{}
		_, err := s.Pull(t.Context(), ref, PullOptions{Progress: func(p LayerProgress) { last[p.Layer] = p }})
		require.NoError(t, err)
		require.Len(t, last, 3)
		for _, l := range img.Layers {
			p := last[digest.FromBytes(l.Blob)]
			require.Equal(t, want, p.State)
			require.Equal(t, int64(len(l.Blob)), p.Total)
			require.Equal(t, p.Total, p.Done)
		}
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	mine, other := threeLayers(t), threeLayers(t)
	mine.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	other.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	ref := reg.PushIndex(t, "multi", "1", other, mine)
	s := openStore(t)
	got, err := s.Pull(t.Context(), ref, PullOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	require.NoError(t, err)
	require.Equal(t, mine.ID(t), got.ID)
	require.Equal(t, "arm64", got.Platform.Architecture)

	_, err = s.Pull(t.Context(), ref, PullOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "riscv64"}})
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.ErrorContains(t, err, "linux/s390x, linux/arm64/v8")

	single := reg.Push(t, "single", "1", other)
	_, err = s.Pull(t.Context(), single, PullOptions{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}})
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.ErrorContains(t, err, "linux/s390x")
	_, err = s.Get(t.Context(), single)
	require.ErrorIs(t, err, errs.ErrNotFound)
	requireTidy(t, s)
}

// after lets the first n answers to blob requests end after the given number of bytes.
func breakOff(n int32, bytes int) func(http.Handler) http.Handler {
	var count atomic.Int32
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") && count.Add(1) <= n {
				next.ServeHTTP(&cutWriter{ResponseWriter: w, left: bytes}, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestPullResumesWhereARegistryBrokeOff(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	var ranges atomic.Int32
	cut := breakOff(7, 40_000)
	reg.Wrap(func(next http.Handler) http.Handler {
		h := cut(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				ranges.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	s := openStore(t)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Positive(t, ranges.Load())
	requireTidy(t, s)
}

func TestPullResumesWithoutRanges(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	cut := breakOff(4, 50_000)
	reg.Wrap(func(next http.Handler) http.Handler {
		h := cut(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			h.ServeHTTP(w, r)
		})
	})
	s := openStore(t)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	requireTidy(t, s)
}

func TestPullErrors(t *testing.T) {
	answer := func(status int, header ...string) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i+1 < len(header); i += 2 {
					w.Header().Set(header[i], header[i+1])
				}
				w.WriteHeader(status)
			})
		}
	}
	blobs := func(do func(w http.ResponseWriter, r *http.Request, next http.Handler)) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") || strings.Contains(r.URL.Path, "/manifests/") {
					do(w, r, next)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	for name, c := range map[string]struct {
		ref  string
		wrap func(http.Handler) http.Handler
		want error
	}{
		"unknown image":       {ref: "%s/nothing:latest", want: errs.ErrNotFound},
		"unknown tag":         {ref: "%s/app:other", want: errs.ErrNotFound},
		"unknown digest":      {ref: "%s/app@sha256:" + strings.Repeat("0", 64), want: errs.ErrNotFound},
		"malformed":           {ref: "%s/UPPER CASE", want: errs.ErrInvalid},
		"sha512":              {ref: "%s/app@sha512:" + strings.Repeat("0", 128), want: errs.ErrUnsupported},
		"unauthorized":        {wrap: answer(401, "WWW-Authenticate", `Basic realm="x"`), want: errs.ErrUnavailable},
		"forbidden":           {wrap: answer(403), want: errs.ErrUnavailable},
		"too many":            {wrap: answer(429), want: errs.ErrUnavailable},
		"too many, long wait": {wrap: answer(429, "Retry-After", "3000"), want: errs.ErrUnavailable},
		"server error":        {wrap: answer(500), want: errs.ErrUnavailable},
		"always breaks off":   {wrap: breakOff(1<<30, 0), want: errs.ErrUnavailable},
		"redirect loop": {wrap: blobs(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), want: errs.ErrUnavailable},
		"other content": {wrap: blobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				next.ServeHTTP(w, r)
				return
			}
			_, _ = w.Write(noise(9, 400_000))
		}), want: errs.ErrCorrupt},
		"endless manifest": {wrap: blobs(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for range 200 {
				if _, err := w.Write(noise(9, 100_000)); err != nil {
					return
				}
			}
		}), want: errs.ErrInvalid},
		"no manifest": {wrap: blobs(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = io.WriteString(w, "<html>")
		}), want: errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			good := reg.Push(t, "app", "latest", threeLayers(t))
			s := openStore(t)
			ref := good
			if c.ref != "" {
				ref = fmt.Sprintf(c.ref, reg.Host)
			}
			reg.Wrap(c.wrap)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			require.ErrorIs(t, err, c.want)
			requireTidy(t, s)
			list, err := s.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, list)
			reg.Wrap(nil)
			_, err = s.Pull(t.Context(), good, PullOptions{})
			require.NoError(t, err, "the next call works")
		})
	}
}

func TestPullHealsAfterErrorsThatMay(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	var n atomic.Int32
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%2 == 1 {
				w.WriteHeader([]int{429, 500, 502, 503, 504}[n.Load()%5])
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	s := openStore(t)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
}

func TestPullEndsAStall(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				w.Header().Set("Content-Length", "1000000")
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	s := openStore(t)
	s.stall = 20 * time.Millisecond
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	requireTidy(t, s)
}

func TestPullRefusesWrongContent(t *testing.T) {
	good := threeLayers(t)
	diffs := func(l ...imagetest.Layer) []byte {
		img := imagetest.Image{Layers: l}
		return img.ConfigBlob(t)
	}
	foreign := good.Layers[2]
	foreign.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	unknown := good.Layers[2]
	unknown.MediaType = "text/html"
	notTar := imagetest.Gzip(noise(4, 100_000))
	cutGzip := good.Layers[0]
	cutGzip.Blob = cutGzip.Blob[:len(cutGzip.Blob)-20]
	for name, c := range map[string]struct {
		img  imagetest.Image
		want error
	}{
		"DiffID":          {imagetest.Image{Layers: good.Layers[:1], ConfigJSON: diffs(good.Layers[1])}, errs.ErrCorrupt},
		"number of ids":   {imagetest.Image{Layers: good.Layers, ConfigJSON: diffs(good.Layers[1])}, errs.ErrInvalid},
		"foreign layer":   {imagetest.Image{Layers: []imagetest.Layer{foreign}}, errs.ErrUnsupported},
		"unknown type":    {imagetest.Image{Layers: []imagetest.Layer{unknown}}, errs.ErrUnsupported},
		"no tar":          {imagetest.Image{Layers: []imagetest.Layer{notTar}}, errs.ErrCorrupt},
		"cut gzip":        {imagetest.Image{Layers: []imagetest.Layer{cutGzip}}, errs.ErrCorrupt},
		"no config":       {imagetest.Image{ConfigJSON: []byte("[]")}, errs.ErrInvalid},
		"too many layers": {imagetest.Image{Layers: make([]imagetest.Layer, 128)}, errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range c.img.Layers {
				if c.img.Layers[i].Blob == nil {
					c.img.Layers[i] = good.Layers[2]
				}
			}
			reg := imagetest.NewRegistry(t)
			ref := reg.Push(t, "bad", "1", c.img)
			s := openStore(t)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			require.ErrorIs(t, err, c.want)
			requireTidy(t, s)
			dir := t.TempDir()
			imagetest.WriteLayout(t, dir, c.img)
			_, err = s.Load(t.Context(), dir, LoadOptions{})
			require.ErrorIs(t, err, c.want, "loading says the same")
			requireTidy(t, s)
			_, err = s.Get(t.Context(), ref)
			require.ErrorIs(t, err, errs.ErrNotFound)
		})
	}
}

// TestPullCancelledAnywhere cancels at every request and then at every 64 KiB of every blob.
func TestPullCancelledAnywhere(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	why := errors.New("the user left")
	for point := int32(1); ; point++ {
		s := openStore(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		var at atomic.Int32
		step := func() {
			if at.Add(1) == point {
				cancel(why)
			}
		}
		reg.Wrap(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				step()
				next.ServeHTTP(&stepWriter{ResponseWriter: w, step: step}, r)
			})
		})
		_, err := s.Pull(ctx, ref, PullOptions{})
		reached := at.Load() >= point
		cancel(nil)
		reg.Wrap(nil)
		requireTidy(t, s)
		if !reached {
			require.NoError(t, err)
			return
		}
		if err != nil {
			require.ErrorIs(t, err, why)
			_, err = s.Get(t.Context(), ref)
			require.ErrorIs(t, err, errs.ErrNotFound)
		}
		img, err := s.Pull(t.Context(), ref, PullOptions{})
		require.NoError(t, err, "the next call works")
		_, err = s.Layers(t.Context(), img)
		require.NoError(t, err)
		require.NoError(t, s.Close())
	}
}

type stepWriter struct {
	http.ResponseWriter
	step func()
}

func (s *stepWriter) Write(p []byte) (int, error) {
	s.step()
	return s.ResponseWriter.Write(p)
}

func TestCloseEndsAPull(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "latest", threeLayers(t))
	inside := make(chan struct{}, 10)
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				inside <- struct{}{}
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	s := openStore(t)
	got := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		got <- err
	}()
	<-inside
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-got, errs.ErrClosed)
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.ErrorIs(t, err, errs.ErrClosed)
}

func TestPullWithoutTLSOnlyWhereAllowed(t *testing.T) {
	s := openStore(t, func(c *Config) { c.PlainHTTP = func(h string) bool { return h == "plain.test:5000" } })
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.9.9:80": true, "[::1]:5000": true,
		"plain.test:5000": true, "plain.test": false, "10.0.0.1:5000": false, "localhost.evil.test": false, "registry.local": false,
	} {
		require.Equal(t, want, s.plainHTTP(host), host)
	}
}

func TestPullTwiceInOneLayer(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Tar(t,
		imagetest.Entry{Name: "x", File: imagetest.File{Data: noise(1, 100_000)}},
		imagetest.Entry{Name: "y", File: imagetest.File{Type: tar.TypeLink, Link: "x"}},
		imagetest.Entry{Name: "x", File: imagetest.File{Data: noise(2, 50_000)}},
	))
	ref := reg.Push(t, "twice", "1", imagetest.Image{Layers: []imagetest.Layer{layer}})
	s := openStore(t)
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, 1, reg.BlobGets(digest.FromBytes(layer.Blob)), "the second pass reads the stored blob")
	disks, err := s.Layers(t.Context(), img)
	require.NoError(t, err)
	require.Equal(t, noise(2, 50_000), readExt4(t, disks[0].Path, "/x"))
	require.Equal(t, noise(1, 100_000), readExt4(t, disks[0].Path, "/y"))
	requireTidy(t, s)
}
