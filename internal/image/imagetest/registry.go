package imagetest

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a registry in the test's own process.
type Registry struct {
	Host string // host:port, spoken to without TLS

	server *httptest.Server
	real   http.Handler
	mu     sync.Mutex
	wrap   func(http.Handler) http.Handler
	gets   map[string]int
}

// NewRegistry starts a registry that ends with the test.
func NewRegistry(tb testing.TB) *Registry {
	tb.Helper()
	r := &Registry{real: registry.New(registry.Logger(log.New(io.Discard, "", 0))), gets: map[string]int{}}
	r.server = httptest.NewServer(r)
	r.Host = strings.TrimPrefix(r.server.URL, "http://")
	tb.Cleanup(r.server.Close)
	return r
}

// ServeHTTP passes a request to the registry, through the wrapper that Wrap has set.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	h := r.real
	if r.wrap != nil {
		h = r.wrap(h)
	}
	if req.Method == http.MethodGet {
		r.gets[req.URL.Path]++
	}
	r.mu.Unlock()
	h.ServeHTTP(w, req)
}

// Wrap puts a handler before the registry, e.g. one that misbehaves; nil takes it away.
func (r *Registry) Wrap(wrap func(http.Handler) http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrap = wrap
}

// BlobGets returns how often the blob has been asked for, in any repository.
func (r *Registry) BlobGets(d digest.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for path, times := range r.gets {
		if strings.HasSuffix(path, "/blobs/"+d.String()) {
			n += times
		}
	}
	return n
}

// Push stores the image under repo and tag and returns its reference.
func (r *Registry) Push(tb testing.TB, repo, tag string, img Image) string {
	tb.Helper()
	r.PushBlobs(tb, repo, img)
	r.PushManifest(tb, repo, tag, ocispec.MediaTypeImageManifest, img.Manifest(tb))
	return fmt.Sprintf("%s/%s:%s", r.Host, repo, tag)
}

// PushIndex stores the images and an index of them.
func (r *Registry) PushIndex(tb testing.TB, repo, tag string, images ...Image) string {
	tb.Helper()
	for _, img := range images {
		m := img.Manifest(tb)
		r.PushBlobs(tb, repo, img)
		r.PushManifest(tb, repo, digest.FromBytes(m).String(), ocispec.MediaTypeImageManifest, m)
	}
	r.PushManifest(tb, repo, tag, ocispec.MediaTypeImageIndex, Index(tb, images...))
	return fmt.Sprintf("%s/%s:%s", r.Host, repo, tag)
}

// PushBlobs stores layers and configuration of the image.
func (r *Registry) PushBlobs(tb testing.TB, repo string, img Image) {
	tb.Helper()
	for d, data := range img.Blobs(tb) {
		r.do(tb, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", data)
	}
}

// PushManifest stores a manifest or index under a tag or digest.
func (r *Registry) PushManifest(tb testing.TB, repo, ref, mediaType string, data []byte) {
	tb.Helper()
	r.do(tb, http.MethodPut, "/v2/"+repo+"/manifests/"+ref, mediaType, data)
}

func (r *Registry) do(tb testing.TB, method, path, contentType string, data []byte) {
	tb.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(data))
	req.Header.Set("Content-Type", contentType)
	rec := httptest.NewRecorder()
	r.real.ServeHTTP(rec, req)
	if rec.Code/100 != 2 {
		tb.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}
