package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// requests counts requests by method and by what their path has.
type requests struct {
	mu  sync.Mutex
	all []string
}

func (q *requests) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q.mu.Lock()
		q.all = append(q.all, r.Method+" "+r.URL.RequestURI())
		q.mu.Unlock()
		next.ServeHTTP(w, r)
	})
}

func (q *requests) count(method, part string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range q.all {
		if strings.HasPrefix(r, method+" ") && strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func TestPushThenPullIsTheSameImage(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	s := openStore(t)
	_, err := load(t, s, imagetest.OCIArchive(t, img))
	require.NoError(t, err)
	ref := reg.Host + "/team/app:v1"
	require.NoError(t, s.Tag(t.Context(), "test/three:1", ref))
	var q requests
	reg.Wrap(q.wrap)
	last := map[digest.Digest]LayerState{}
	pushed, err := s.Push(t.Context(), ref, PushOptions{Progress: func(p LayerProgress) { last[p.Layer] = p.State }})
	require.NoError(t, err)
	require.Equal(t, digest.FromBytes(img.Manifest(t)), pushed.Manifest, "an image that came with its manifest keeps it")
	require.Equal(t, 4, q.count("PUT", "/blobs/uploads/"))
	for _, l := range img.Layers {
		require.Equal(t, LayerDone, last[digest.FromBytes(l.Blob)])
	}
	_, err = s.Push(t.Context(), ref, PushOptions{Progress: func(p LayerProgress) { last[p.Layer] = p.State }})
	require.NoError(t, err)
	require.Equal(t, 4, q.count("PUT", "/blobs/uploads/"), "blobs that are there are not sent")
	require.Equal(t, LayerExists, last[pushed.Layers[0].Digest])

	other := openStore(t)
	got, err := other.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, pushed.ID, got.ID)
	require.Equal(t, pushed.Layers, got.Layers)
	requireTidy(t, s)
}

// TestPushCompressesWhatWasMadeHere pushes an image of a Docker archive, whose layers are plain.
func TestPushCompressesWhatWasMadeHere(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	text := bytes.Repeat([]byte("text "), 100_000)
	img := imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Plain(imagetest.Tar(t, imagetest.Entry{Name: "a", File: imagetest.File{Mode: 0o644, Data: text}})),
		threeLayers(t).Layers[0],
	}}
	ref := reg.Host + "/made:1"
	img.Names = []string{ref}
	s := openStore(t)
	loaded, err := load(t, s, imagetest.DockerArchive(t, img))
	require.NoError(t, err)
	pushed, err := s.Push(t.Context(), ref, PushOptions{})
	require.NoError(t, err)
	require.Equal(t, loaded[0].ID, pushed.ID)
	require.NotEqual(t, loaded[0].Manifest, pushed.Manifest)
	require.Less(t, pushed.Layers[0].Size, int64(10_000))
	for _, l := range pushed.Layers {
		require.Equal(t, ocispec.MediaTypeImageLayerGzip, l.MediaType)
	}
	got, err := s.Get(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, pushed, got)
	_, err = s.Get(t.Context(), reg.Host+"/made@"+pushed.Manifest.String())
	require.NoError(t, err)
	again, err := s.Push(t.Context(), ref, PushOptions{})
	require.NoError(t, err)
	require.Equal(t, pushed, again)

	_, err = s.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err, "the plain blobs go")
	other := openStore(t)
	back, err := other.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	require.Equal(t, pushed.Layers, back.Layers)
	requireTidy(t, s)
}

func TestPushMountsFromAnotherRepository(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	base := reg.Push(t, "base", "1", img)
	s := openStore(t)
	_, err := s.Pull(t.Context(), base, PullOptions{})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		mounts bool
		want   LayerState
	}{"mounted": {true, LayerMounted}, "not allowed": {false, LayerDone}} {
		t.Run(name, func(t *testing.T) {
			var q requests
			reg.Wrap(func(next http.Handler) http.Handler {
				return q.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch {
					case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/"):
						w.WriteHeader(http.StatusNotFound) // the registry of the test has one place for all repositories
					case r.URL.Query().Get("mount") != "" && c.mounts:
						w.WriteHeader(http.StatusCreated)
					default:
						r.URL.RawQuery = strings.ReplaceAll(r.URL.RawQuery, "mount=", "x=")
						next.ServeHTTP(w, r)
					}
				}))
			})
			ref := reg.Host + "/derived/app:1"
			require.NoError(t, s.Tag(t.Context(), base, ref))
			last := map[digest.Digest]LayerState{}
			_, err := s.Push(t.Context(), ref, PushOptions{Progress: func(p LayerProgress) { last[p.Layer] = p.State }})
			require.NoError(t, err)
			require.Equal(t, 3, q.count("POST", "from=base"))
			for _, l := range img.Layers {
				require.Equal(t, c.want, last[digest.FromBytes(l.Blob)])
			}
			require.NoError(t, removeRef(t, s, ref, false))
		})
	}
}

func TestPushErrors(t *testing.T) {
	upload := func(do http.HandlerFunc) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
					do(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	}
	var over chan struct{}
	for name, c := range map[string]struct {
		wrap func(http.Handler) http.Handler
		want error
		says string
	}{
		"down":         {answerAll(500), errs.ErrUnavailable, "500"},
		"unauthorized": {answerAll(401), errs.ErrUnavailable, "credentials"},
		"denied":       {upload(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }), errs.ErrUnavailable, "credentials"},
		"too many":     {upload(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }), errs.ErrUnavailable, "too many"},
		"breaks off":   {upload(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), errs.ErrUnavailable, "blob"},
		"stalls":       {upload(func(http.ResponseWriter, *http.Request) { <-over }), errs.ErrUnavailable, "nothing for"},
		"no location": {func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					w.WriteHeader(http.StatusAccepted)
					return
				}
				next.ServeHTTP(w, r)
			})
		}, errs.ErrUnavailable, "where to send"},
		"refuses the manifest": {func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") {
					w.WriteHeader(http.StatusBadRequest)
					return
				}
				next.ServeHTTP(w, r)
			})
		}, errs.ErrUnavailable, "manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := imagetest.NewRegistry(t)
			img := imagetest.Image{Names: []string{reg.Host + "/app:1"}, Layers: []imagetest.Layer{imagetest.Plain(imagetest.Tar(t,
				imagetest.Entry{Name: "big", File: imagetest.File{Mode: 0o644, Data: noise(3, 20<<20)}}))}}
			over = make(chan struct{})
			s := openStore(t)
			if name == "stalls" {
				s.stall = 50 * time.Millisecond
			} else {
				img.Layers[0] = threeLayers(t).Layers[0]
			}
			_, err := load(t, s, imagetest.OCIArchive(t, img))
			require.NoError(t, err)
			reg.Wrap(c.wrap)
			_, err = s.Push(t.Context(), img.Names[0], PushOptions{})
			close(over)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.says)
			reg.Wrap(nil)
			_, err = s.Pull(t.Context(), img.Names[0], PullOptions{})
			require.ErrorIs(t, err, errs.ErrNotFound, "the registry has no tag")
			requireTidy(t, s)
		})
	}
	s := openStore(t)
	for ref, want := range map[string]error{
		"UPPER": errs.ErrInvalid, "localhost:1/nothing": errs.ErrNotFound, "localhost:1/x@sha256:" + strings.Repeat("0", 64): errs.ErrInvalid,
	} {
		_, err := s.Push(t.Context(), ref, PushOptions{})
		require.ErrorIs(t, err, want, ref)
	}
}

func TestPushHealsAfterErrorsThatMay(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	img.Names = []string{reg.Host + "/app:1"}
	s := openStore(t)
	_, err := load(t, s, imagetest.OCIArchive(t, img))
	require.NoError(t, err)
	var mu sync.Mutex
	seen := map[string]bool{}
	first := func(r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.Method + r.URL.Path
		if d := r.URL.Query().Get("digest"); d != "" {
			key = r.Method + d
		}
		was := seen[key]
		seen[key] = true
		return !was
	}
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if first(r) {
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				w.WriteHeader(map[string]int{"HEAD": 500, "POST": 429, "PUT": 503, "GET": 502}[r.Method])
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	_, err = s.Push(t.Context(), img.Names[0], PushOptions{})
	require.NoError(t, err)
	reg.Wrap(nil)
	_, err = openStore(t).Pull(t.Context(), img.Names[0], PullOptions{})
	require.NoError(t, err)
}

// TestPushFindsAChangedBlob: neither a registry nor an archive gets what was changed on disk, and the next pull mends it.
func TestPushFindsAChangedBlob(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := reg.Push(t, "app", "1", img)
	blob := digest.FromBytes(img.Layers[1].Blob)
	for name, use := range map[string]func(*Store) error{
		"push": func(s *Store) error {
			require.NoError(t, s.Tag(t.Context(), ref, reg.Host+"/copy:1"))
			reg.Wrap(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodHead {
						w.WriteHeader(http.StatusNotFound)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			_, err := s.Push(t.Context(), reg.Host+"/copy:1", PushOptions{})
			return err
		},
		"save": func(s *Store) error { return s.Save(t.Context(), io.Discard, []string{ref}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			require.NoError(t, err)
			path, err := s.blobs.path(blob)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(path, 0o600))
			require.NoError(t, os.WriteFile(path, noise(8, len(img.Layers[1].Blob)), 0o600))
			require.ErrorIs(t, use(s), errs.ErrCorrupt)
			require.NoFileExists(t, path)
			reg.Wrap(nil)
			_, err = s.Pull(t.Context(), ref, PullOptions{})
			require.NoError(t, err)
			requireTidy(t, s)
			require.NoError(t, use(s))
			reg.Wrap(nil)
		})
	}
}

func TestPushCancelledAnywhere(t *testing.T) {
	img := threeLayers(t)
	why := errors.New("the user left")
	s := openStore(t)
	for point := int32(1); ; point++ {
		reg := imagetest.NewRegistry(t)
		img.Names = []string{reg.Host + "/app:1"}
		_, err := load(t, s, imagetest.OCIArchive(t, img))
		require.NoError(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		var at atomic.Int32
		reg.Wrap(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if at.Add(1) == point {
					cancel(why)
				}
				next.ServeHTTP(w, r)
			})
		})
		_, err = s.Push(ctx, img.Names[0], PushOptions{})
		cancel(nil)
		if err == nil {
			require.Greater(t, point, int32(10))
			break
		}
		require.ErrorIs(t, err, why)
		requireTidy(t, s)
	}
}
