package image

import (
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func itoa(n int) string { return strconv.Itoa(n) }

// answerAll answers every request with the status.
func answerAll(status int) func(http.Handler) http.Handler {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	}
}

func TestPullAsksMirrorsInTheirOrder(t *testing.T) {
	own, first, second := imagetest.NewRegistry(t), imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := own.Push(t, "team/app", "1", img)
	second.Push(t, "cache/team/app", "1", img)
	first.Wrap(answerAll(503))
	s := openStore(t, func(c *Config) { c.Mirrors = map[string][]string{own.Host: {first.Host, second.Host + "/cache"}} })
	got, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{ref}, got.Names, "the name is the registry's")
	for _, l := range img.Layers {
		require.Zero(t, own.BlobGets(digest.FromBytes(l.Blob)))
		require.Equal(t, 1, second.BlobGets(digest.FromBytes(l.Blob)))
	}
	requireTidy(t, s)
}

// TestPullFallsBackToTheRegistry has mirrors that fail in every way, at every step.
func TestPullFallsBackToTheRegistry(t *testing.T) {
	only := func(part string, do http.HandlerFunc) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, part) {
					do(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"down": answerAll(500), "unknown": answerAll(404), "refuses": answerAll(401),
		"other manifest": only("/manifests/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }),
		"no blobs":       only("/blobs/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }),
		"other blobs":    only("/blobs/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(noise(9, 400_000)) }),
		"breaks off":     breakOff(1<<30, 70_000),
	} {
		t.Run(name, func(t *testing.T) {
			own, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
			img := threeLayers(t)
			ref := own.Push(t, "app", "1", img)
			mirror.Push(t, "app", "1", img)
			mirror.Wrap(wrap)
			s := openStore(t, func(c *Config) { c.Mirrors = map[string][]string{own.Host: {mirror.Host}} })
			at := ref
			if name == "other manifest" { // a tag is what the mirror says
				at = strings.TrimSuffix(ref, ":1") + "@" + digest.FromBytes(img.Manifest(t)).String()
			}
			got, err := s.Pull(t.Context(), at, PullOptions{})
			require.NoError(t, err)
			require.Equal(t, img.ID(t), got.ID)
			requireTidy(t, s)
		})
	}
	own, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	mirror.Wrap(answerAll(403))
	s := openStore(t, func(c *Config) { c.Mirrors = map[string][]string{own.Host: {mirror.Host}} })
	_, err := s.Pull(t.Context(), own.Host+"/app:1", PullOptions{})
	require.ErrorIs(t, err, errs.ErrNotFound, "the registry's word counts")
	require.ErrorContains(t, err, "mirror "+mirror.Host)
}

func TestOpenRefusesBadRegistryConfig(t *testing.T) {
	for name, mod := range map[string]func(*Config){
		"mirror with scheme":  func(c *Config) { c.Mirrors = map[string][]string{"docker.io": {"http://x"}} },
		"mirror without host": func(c *Config) { c.Mirrors = map[string][]string{"docker.io": {"cache"}} },
		"empty mirror":        func(c *Config) { c.Mirrors = map[string][]string{"docker.io": {""}} },
		"mirrors of no host":  func(c *Config) { c.Mirrors = map[string][]string{"library": {"x.io"}} },
		"mirrors of a path":   func(c *Config) { c.Mirrors = map[string][]string{"x.io/a": {"y.io"}} },
		"no CA":               func(c *Config) { c.CA = []byte("certificate") },
		"CA of another":       func(c *Config) { c.CA, c.Transport = []byte("certificate"), http.DefaultTransport },
		"proxy of another":    func(c *Config) { c.Proxy, c.Transport = http.ProxyFromEnvironment, http.DefaultTransport },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir()}
			mod(&cfg)
			_, err := Open(cfg)
			require.ErrorIs(t, err, errs.ErrInvalid)
		})
	}
}

func TestMirrorsOfTheHub(t *testing.T) {
	mirror := imagetest.NewRegistry(t)
	mirror.Push(t, "library/alpine", "latest", threeLayers(t))
	for _, hub := range []string{"docker.io", "index.docker.io"} {
		s := openStore(t, func(c *Config) { c.Mirrors = map[string][]string{hub: {mirror.Host}} })
		got, err := s.Pull(t.Context(), "alpine", PullOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{"docker.io/library/alpine:latest"}, got.Names)
	}
}

// TestOwnCA pulls from a registry whose certificate only Config.CA vouches for.
func TestOwnCA(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	reg.Push(t, "app", "1", threeLayers(t))
	srv := httptest.NewUnstartedServer(reg)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	// The certificate of httptest is for example.com as well as for the loopback addresses, which are always plain.
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "https://"), ":")
	ref := "example.com:" + port + "/app:1"
	var proxied atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxied.Add(1)
		tunnel(w, srv.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	via, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	s := openStore(t, func(c *Config) { c.CA, c.Proxy = ca, http.ProxyURL(via) })
	_, err = s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Positive(t, proxied.Load())
	s = openStore(t, func(c *Config) { c.Proxy = http.ProxyURL(via) })
	_, err = s.Pull(t.Context(), ref, PullOptions{})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "certificate")
}

// TestLoopbackWithTLS has a registry with TLS where most have none.
func TestLoopbackWithTLS(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	reg.Push(t, "app", "1", threeLayers(t))
	srv := httptest.NewUnstartedServer(reg)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := srv.Listener.Addr().String()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	s := openStore(t, func(c *Config) { c.CA = ca })
	got, err := s.Pull(t.Context(), host+"/app:1", PullOptions{})
	require.NoError(t, err)
	require.NoError(t, s.Tag(t.Context(), got.ID.String(), host+"/other:1"))
	_, err = s.Push(t.Context(), host+"/other:1", PushOptions{})
	require.NoError(t, err)
	_, err = openStore(t).Pull(t.Context(), host+"/app:1", PullOptions{})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "certificate")
	s = openStore(t, func(c *Config) { c.CA, c.PlainHTTP = ca, func(string) bool { return true } })
	_, err = s.Pull(t.Context(), host+"/app:1", PullOptions{})
	require.ErrorIs(t, err, errs.ErrUnavailable, "the configuration says that it has no TLS")
}

// tunnel joins the client of a proxy with addr.
func tunnel(w http.ResponseWriter, addr string) {
	far, err := net.Dial("tcp", addr)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	near, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = far.Close()
		return
	}
	_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(far, buf); _ = far.Close() })
	wg.Go(func() { _, _ = io.Copy(near, far); _ = near.Close() })
	wg.Wait()
}
