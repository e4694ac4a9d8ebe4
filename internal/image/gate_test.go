package image

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestGateLetsOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		require.NoError(t, g.enter(t.Context()))
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := g.enter(ctx); !errors.Is(err, why) {
				t.Errorf("the one that was cancelled: %v", err)
			}
		})
		in := false
		wg.Go(func() {
			if err := g.enter(t.Context()); err != nil {
				t.Error(err)
			}
			in = true
			g.leave()
		})
		synctest.Wait()
		cancel(why)
		synctest.Wait()
		require.False(t, in)
		g.leave()
		wg.Wait()
		require.True(t, in)
		require.NoError(t, gate(nil).enter(t.Context()))
		gate(nil).leave()
	})
}

// manyFiles is a layer with more entries than are converted beside others.
func manyFiles(t testing.TB, seed int) imagetest.Layer {
	entries := make([]imagetest.Entry, manyEntries+100)
	for i := range entries {
		entries[i] = imagetest.Entry{Name: strconv.Itoa(seed) + "-" + strconv.Itoa(i), File: imagetest.File{Mode: 0o644}}
	}
	return imagetest.Gzip(imagetest.Tar(t, entries...))
}

// TestManyEntries loads layers of many entries at once, one of them in two passes, and cancels one that waits.
func TestManyEntries(t *testing.T) {
	twice := imagetest.Tar(t, append([]imagetest.Entry{{Name: "x", File: imagetest.File{Mode: 0o644, Data: []byte("old")}}},
		imagetest.Entry{Name: "x", File: imagetest.File{Mode: 0o644, Data: []byte("new")}})...)
	img := imagetest.Image{Names: []string{"many:1"}, Layers: []imagetest.Layer{manyFiles(t, 1), manyFiles(t, 2), imagetest.Gzip(twice)}}
	s := openStore(t)
	got, err := load(t, s, imagetest.OCIArchive(t, img))
	require.NoError(t, err)
	require.Len(t, got[0].Layers, 3)

	require.NoError(t, s.cfg.Limits.gate.enter(t.Context()))
	third := manyFiles(t, 3)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "1", imagetest.Image{Layers: []imagetest.Layer{third}})
	reg.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			if strings.HasSuffix(r.URL.Path, digest.FromBytes(third.Blob).String()) {
				cancel(why)
			}
		})
	})
	_, err = s.Pull(ctx, ref, PullOptions{})
	require.ErrorIs(t, err, why)
	reg.Wrap(nil)
	s.cfg.Limits.gate.leave()
	requireTidy(t, s)
	_, err = s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	_, err = s.Import(t.Context(), bytes.NewReader(third.Blob), ImportOptions{Platform: s.cfg.Platform})
	require.NoError(t, err)
	_, err = s.findLayer(t.Context(), digest.FromBytes(third.Tar))
	require.NoError(t, err)
}
