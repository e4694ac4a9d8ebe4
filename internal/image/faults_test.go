package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// TestPauseObeysRetryAfter is in a bubble whose time is not that of the clock.
func TestPauseObeysRetryAfter(t *testing.T) {
	for name, c := range map[string]struct {
		header string
		least  time.Duration
		fails  bool
	}{
		"none": {"", firstBackoff, false}, "seconds": {"7", 7 * time.Second, false}, "minute": {"60", time.Minute, false},
		"hour": {"3600", 0, true}, "for ever": {"999999999999999999999", firstBackoff, false}, "nonsense": {"soon", firstBackoff, false},
		"past": {"Fri, 01 Jan 1999 00:00:00 GMT", firstBackoff, false}, "date": {"Sat, 01 Jan 2000 00:00:30 GMT", 30 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // the bubble begins on 2000-01-01
				s := &Store{backoff: firstBackoff}
				began := time.Now()
				why := &httpError{err: errors.New("429"), status: 429, after: retryAfter(c.header)}
				err := s.pause(t.Context(), 1, why)
				if c.fails {
					require.ErrorIs(t, err, why)
					require.Zero(t, time.Since(began))
					return
				}
				require.NoError(t, err)
				require.GreaterOrEqual(t, time.Since(began), c.least)
				require.LessOrEqual(t, time.Since(began), max(c.least, firstBackoff*2))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := &Store{backoff: firstBackoff}
		began := time.Now()
		for try := 1; try < 40; try++ {
			require.NoError(t, s.pause(t.Context(), try, errors.New("x")))
		}
		require.Less(t, time.Since(began), 40*(lastBackoff+lastBackoff/2), "waits have a longest")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, s.pause(ctx, 9, errors.New("x")), context.DeadlineExceeded)
	})
}

// TestPullOfLies has registries that say one thing and send another.
func TestPullOfLies(t *testing.T) {
	img := threeLayers(t)
	lie := func(change func(m string) string) []byte { return []byte(change(string(img.Manifest(t)))) }
	first := img.Layers[0]
	size := fmt.Sprintf(`"size":%d`, len(first.Blob))
	for name, c := range map[string]struct {
		manifest []byte
		want     error
		says     string
	}{
		"smaller":   {lie(func(m string) string { return strings.Replace(m, size, `"size":1000`, 1) }), errs.ErrCorrupt, "digest"},
		"larger":    {lie(func(m string) string { return strings.Replace(m, size, `"size":500000`, 1) }), errs.ErrCorrupt, "of 500000 bytes"},
		"huge":      {lie(func(m string) string { return strings.Replace(m, size, `"size":99999999999999`, 1) }), errs.ErrInvalid, "at most"},
		"negative":  {lie(func(m string) string { return strings.Replace(m, size, `"size":-1`, 1) }), errs.ErrInvalid, "bytes"},
		"no number": {lie(func(m string) string { return strings.Replace(m, size, `"size":"x"`, 1) }), errs.ErrInvalid, "manifest"},
		"digest of path": {lie(func(m string) string {
			return strings.Replace(m, digest.FromBytes(first.Blob).String(), "sha256:../../../../etc/passwd", 1)
		}), errs.ErrInvalid, "digest"},
		"other algorithm": {lie(func(m string) string {
			return strings.Replace(m, digest.FromBytes(first.Blob).String(), "sha512:"+strings.Repeat("0", 128), 1)
		}), errs.ErrUnsupported, "sha256"},
		"zstd, it says":  {lie(func(m string) string { return strings.Replace(m, "tar+gzip", "tar+zstd", 1) }), nil, ""},
		"plain, it says": {lie(func(m string) string { return strings.Replace(m, "tar+zstd", "tar", 1) }), nil, ""},
		"no type": {lie(func(m string) string {
			return strings.Replace(m, `"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",`, "", 1)
		}), errs.ErrUnsupported, "layer of type"},
		"encrypted": {lie(func(m string) string { return strings.Replace(m, "tar+gzip", "tar+gzip+encrypted", 1) }), errs.ErrUnsupported, "encrypted"},
		"an artifact": {lie(func(m string) string {
			return strings.Replace(m, ocispec.MediaTypeImageConfig, "application/vnd.cncf.helm.config.v1+json", 1)
		}), errs.ErrUnsupported, "no container image"},
		"schema 1":        {[]byte(`{"schemaVersion":1,"name":"x","fsLayers":[]}`), errs.ErrUnsupported, "schema 1"},
		"both":            {[]byte(`{"schemaVersion":2,"manifests":[],"config":{"digest":"x"}}`), errs.ErrInvalid, "neither"},
		"empty index":     {[]byte(`{"schemaVersion":2,"manifests":[]}`), errs.ErrUnsupported, "none"},
		"index in itself": {nil, errs.ErrInvalid, "deep"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			reg.PushBlobs(t, "app", img)
			if c.manifest == nil {
				reg.PushIndex(t, "app", "0", img)
				c.manifest = imagetest.Index(t, img)
				for range maxDepth { // indexes of indexes
					inner := digest.FromBytes(c.manifest)
					reg.PushManifest(t, "app", inner.String(), ocispec.MediaTypeImageIndex, c.manifest)
					c.manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}]}`,
						ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageIndex, inner, len(c.manifest), runtime.GOARCH)
				}
			}
			reg.Wrap(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/manifests/1") {
						w.Header().Set("Content-Type", "text/plain")
						_, _ = w.Write(c.manifest)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			s := openStore(t)
			_, err := s.Pull(t.Context(), reg.Host+"/app:1", PullOptions{})
			if c.want == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, c.want)
				require.ErrorContains(t, err, c.says)
			}
			requireTidy(t, s)
		})
	}
}

// TestSilentRegistry has one that takes every request and answers none.
func TestSilentRegistry(t *testing.T) {
	for _, part := range []string{"/v2/", "/manifests/", "/blobs/"} {
		t.Run(part, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			ref := reg.Push(t, "app", "1", threeLayers(t))
			over := make(chan struct{})
			reg.Wrap(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, part) {
						<-over
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			s := openStore(t, func(c *Config) { c.Transport = http.DefaultTransport.(*http.Transport).Clone() })
			s.stall = 20 * time.Millisecond
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			close(over)
			require.ErrorIs(t, err, errs.ErrUnavailable)
			require.ErrorContains(t, err, "not answered")
			requireTidy(t, s)
			s.cfg.Transport.(*http.Transport).CloseIdleConnections()
		})
	}
}

// TestPullGoesOnWhenItsLeaderIsCancelled: of two pulls of a layer one does the work and is cancelled in the middle.
func TestPullGoesOnWhenItsLeaderIsCancelled(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img, blob := bigLayer(t)
	ref := reg.Push(t, "app", "1", img)
	dir := filepath.Join(t.TempDir(), "images")
	a := openStore(t, func(c *Config) { c.Dir = dir })
	b := openStore(t, func(c *Config) { c.Dir = dir })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun, waits := make(chan struct{}), make(chan struct{})
	var ranges []string
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/blobs/"+blob.String()) {
				ranges = append(ranges, r.Header.Get("Range"))
				switch len(ranges) {
				case 1:
					w = &cutWriter{ResponseWriter: flushing{w}, left: 300_000}
				case 2:
					close(begun)
					<-waits
					cancel()
					<-r.Context().Done()
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Pull(ctx, ref, PullOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("the first pull: %v", err)
		}
	})
	<-begun
	told := false
	_, err := b.Pull(t.Context(), ref, PullOptions{Progress: func(p LayerProgress) {
		if !told && p.State == LayerWaiting {
			told = true
			close(waits)
		}
	}})
	wg.Wait()
	require.NoError(t, err)
	require.Len(t, ranges, 3)
	require.NotEmpty(t, ranges[2], "the second goes on from where the first was")
	requireTidy(t, b)
}

// TestDockersConfigFile finds credentials as the docker command left them: in the file, or by a helper that it names.
func TestDockersConfigFile(t *testing.T) {
	needs.Unix(t, "the helper of this test is a shell script")
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "1", threeLayers(t))
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	helper := "#!/bin/sh\nread host\nif [ \"$1 $host\" = 'get " + reg.Host + "' ]; then echo '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n" +
		"else echo 'credentials not found in native keychain'; exit 1; fi\n"
	for name, c := range map[string]struct {
		config string
		want   error
	}{
		"file":         {`{"auths":{"` + reg.Host + `":{"auth":"` + auth + `"}}}`, nil},
		"helper":       {`{"credHelpers":{"` + reg.Host + `":"test"}}`, nil},
		"store":        {`{"credsStore":"test"}`, nil},
		"another host": {`{"auths":{"example.com":{"auth":"` + auth + `"}}}`, errs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o700))
			t.Setenv("DOCKER_CONFIG", dir)
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			s := openStore(t, func(c *Config) { c.Keychain = nil })
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, "credentials")
		})
	}
}

// TestReferencesAreReadAsDockerDoes has every form.
func TestReferencesAreReadAsDockerDoes(t *testing.T) {
	d := "sha256:" + strings.Repeat("0", 64)
	for ref, want := range map[string]string{
		"alpine": "docker.io/library/alpine:latest", "alpine:3": "docker.io/library/alpine:3", "team/app": "docker.io/team/app:latest",
		"docker.io/alpine": "docker.io/library/alpine:latest", "index.docker.io/library/alpine": "docker.io/library/alpine:latest",
		"localhost/app": "localhost/app:latest", "localhost:5000/app": "localhost:5000/app:latest", "localhost:5000/a/b/c:x": "localhost:5000/a/b/c:x",
		"host/app": "docker.io/host/app:latest", "host.example/app": "host.example/app:latest", "host:80/app": "host:80/app:latest",
		"[::1]:5000/app": "[::1]:5000/app:latest", "10.0.0.1/app:v1": "10.0.0.1/app:v1", "HOST.example/app": "HOST.example/app:latest",
		"alpine@" + d: "docker.io/library/alpine@" + d, "alpine:3@" + d: "docker.io/library/alpine:3@" + d,
		"localhost:5000/app:1@" + d: "localhost:5000/app:1@" + d, "a__b/c-d.e:X_1.2-3": "docker.io/a__b/c-d.e:X_1.2-3",
	} {
		got, err := Normalize(ref)
		require.NoError(t, err, ref)
		require.Equal(t, want, got)
	}
	for _, ref := range []string{
		"", " ", "UPPER", "a//b", "/a", "a/", "a:", ":a", "a:b:c", "a@b", "a@sha256:00", "a@" + strings.ToUpper(d), "-a", "a_", "a..b", "a/../b",
		"http://host/app", "a b", "a\x00", "alpine:" + strings.Repeat("x", 129), strings.Repeat("a", 300), strings.Repeat("0", 64), "é",
	} {
		_, err := Normalize(ref)
		require.ErrorIs(t, err, errs.ErrInvalid, "%q", ref)
	}
}

// TestPullByTagAndDigest fetches by the digest and keeps the whole name, as Docker does.
func TestPullByTagAndDigest(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	d := digest.FromBytes(img.Manifest(t))
	reg.Push(t, "app", "1", img)
	other := threeLayers(t)
	other.Config.Cmd = []string{"/other"}
	reg.Push(t, "app", "1", other) // the tag has moved on
	s := openStore(t)
	ref := reg.Host + "/app:1@" + d.String()
	got, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, img.ID(t), got.ID)
	require.Equal(t, []string{ref}, got.Names)
	for _, name := range []string{ref, reg.Host + "/app@" + d.String()} {
		back, err := s.Get(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, got.ID, back.ID)
	}
	_, err = s.Get(t.Context(), reg.Host+"/app:1")
	require.ErrorIs(t, err, errs.ErrNotFound, "nobody has asked for the tag")
}
