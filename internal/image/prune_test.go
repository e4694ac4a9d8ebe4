package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func TestPruneKeepsWhatImagesNeed(t *testing.T) {
	s := openStore(t)
	a, b := threeLayers(t), threeLayers(t)
	a.Names, b.Names, b.Layers = []string{"t/a"}, []string{"t/b"}, b.Layers[1:]
	got, err := load(t, s, imagetest.OCIArchive(t, a, b))
	require.NoError(t, err)
	p, err := s.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err)
	require.Zero(t, p)
	require.NoError(t, removeRef(t, s, "t/a", false))
	p, err = s.Prune(t.Context(), PruneOptions{Keep: true})
	require.NoError(t, err)
	require.Equal(t, 3, p.Blobs, "manifest, configuration and the layer b does not have")
	require.Equal(t, 1, p.Layers)
	require.Greater(t, p.Bytes, int64(600_000))
	_, err = s.Layers(t.Context(), got[1])
	require.NoError(t, err)
	requireTidy(t, s)
}

// build makes an image of one file.
func build(t testing.TB, s *Store, name string, labels map[string]string, size int) Image {
	t.Helper()
	var names []string
	if name != "" {
		names = []string{name}
	}
	img, err := s.Build(context.Background(), BuildSpec{
		Names: names, Comment: name,
		Layers: []LayerSource{{Files: map[string]LayerFile{"f": {Data: append(noise(1, size), name...)}}}},
		Change: func(c *ocispec.ImageConfig) { c.Labels = labels },
	})
	require.NoError(t, err)
	return img
}

// used sets when an image was used.
func used(t *testing.T, s *Store, img Image, ago time.Duration) {
	t.Helper()
	path := s.recordPath(img.ID)
	rec, err := s.readRecord(path)
	require.NoError(t, err)
	at := time.Now().Add(-ago)
	rec.Loaded = at
	require.NoError(t, writeJSON(path, rec))
	require.NoError(t, os.Chtimes(path, at, at))
}

func TestPruneTakesWhatTheOptionsSay(t *testing.T) {
	const mib = 1 << 20
	for name, tt := range map[string]struct {
		o    PruneOptions
		want string // what goes, in this order
	}{
		"nothing named":      {PruneOptions{}, "dangling"},
		"none":               {PruneOptions{Keep: true}, ""},
		"all":                {PruneOptions{All: true}, "old new dangling"},
		"all of an age":      {PruneOptions{All: true, Unused: time.Hour}, "old new"},
		"dangling of an age": {PruneOptions{Unused: time.Hour}, ""},
		"label":              {PruneOptions{All: true, Labels: []string{"k"}}, "old new"},
		"label and value":    {PruneOptions{All: true, Labels: []string{"k=2"}}, "new"},
		"labels":             {PruneOptions{All: true, Labels: []string{"k=2", "x"}}, ""},
		"large budget":       {PruneOptions{All: true, Budget: 100 * mib}, ""},
		"small budget":       {PruneOptions{All: true, Budget: 7 * mib / 2}, "old"},
		"budget of a byte":   {PruneOptions{All: true, Budget: 1}, "old new dangling"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			names := map[digest.Digest]string{}
			for _, img := range []struct {
				name   string
				ago    time.Duration
				labels map[string]string
			}{{"old", 3 * time.Hour, map[string]string{"k": "1"}}, {"new", 2 * time.Hour, map[string]string{"k": "2"}}, {"inuse", 4 * time.Hour, map[string]string{"k": "2"}}} {
				got := build(t, s, img.name, img.labels, mib/2)
				names[got.ID] = img.name
				used(t, s, got, img.ago)
			}
			names[build(t, s, "", nil, mib/2-5).ID] = "dangling"
			_, err := s.Use(t.Context(), "inuse", User{ID: "c1", Name: "container"})
			require.NoError(t, err)
			p, err := s.Prune(t.Context(), tt.o)
			require.NoError(t, err)
			var gone []string
			for _, img := range p.Images {
				gone = append(gone, names[img.ID])
				_, err := s.Get(t.Context(), img.ID.String())
				require.ErrorIs(t, err, errs.ErrNotFound)
			}
			require.Equal(t, tt.want, strings.Join(gone, " "))
			require.Equal(t, 3*len(gone), p.Blobs)
			require.Equal(t, len(gone), p.Layers)
			left, err := s.List(t.Context())
			require.NoError(t, err)
			require.Len(t, left, 4-len(gone))
			for _, img := range left {
				_, err := s.Layers(t.Context(), img)
				require.NoError(t, err)
			}
			requireTidy(t, s)
		})
	}
}

func TestPruneRefuses(t *testing.T) {
	s := openStore(t)
	for _, o := range []PruneOptions{{Unused: -1}, {Budget: -1}, {Keep: true, All: true}, {Labels: []string{"=x"}}} {
		_, err := s.Prune(t.Context(), o)
		require.ErrorIs(t, err, errs.ErrInvalid)
	}
}

// TestPruneLeavesOperationsWhatTheyNeed prunes by another store, as another process does, while a layer is on its way.
func TestPruneLeavesOperationsWhatTheyNeed(t *testing.T) {
	s := openStore(t)
	other := openStore(t, func(c *Config) { c.Dir = s.dir })
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Build(context.Background(), BuildSpec{Names: []string{"late"}, Layers: []LayerSource{
			{Files: map[string]LayerFile{"first": {Data: noise(1, 100_000)}}}, {Tar: pr},
		}})
		done <- err
	}()
	tarball := imagetest.Tar(t, reg("second", "2"))
	_, err := pw.Write(tarball[:512]) // the first layer is in the store by now
	require.NoError(t, err)
	p, err := other.Prune(t.Context(), PruneOptions{All: true, LayerImages: true})
	require.NoError(t, err)
	require.Zero(t, p)
	_, err = pw.Write(tarball[512:])
	require.NoError(t, err)
	require.NoError(t, pw.Close())
	require.NoError(t, <-done)
	img, err := other.Get(t.Context(), "late")
	require.NoError(t, err)
	_, err = other.Layers(t.Context(), img)
	require.NoError(t, err)

	// What no record names is not needed any more once the operation has ended.
	pr, pw = io.Pipe()
	go func() {
		_, err := s.Build(context.Background(), BuildSpec{Layers: []LayerSource{{Files: map[string]LayerFile{"x": {}}}, {Tar: pr}}})
		done <- err
	}()
	_, err = pw.Write(tarball[:512])
	require.NoError(t, err)
	require.NoError(t, pw.CloseWithError(io.ErrUnexpectedEOF))
	require.ErrorIs(t, <-done, io.ErrUnexpectedEOF)
	p, err = other.Prune(t.Context(), PruneOptions{})
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{p.Blobs, p.Layers})
	requireTidy(t, s)
}

// A base that is removed and pruned while something is built on it makes the build fail, and no image without its blobs.
func TestBaseRemovedMeanwhile(t *testing.T) {
	s := openStore(t)
	other := openStore(t, func(c *Config) { c.Dir = s.dir })
	base := loadBase(t, s)
	blob, err := s.blobs.path(base.Layers[0].Digest)
	require.NoError(t, err)
	_, err = s.Build(t.Context(), BuildSpec{Base: "base:1", Names: []string{"new"}, Layers: []LayerSource{{Tar: &hook{
		r: bytes.NewReader(imagetest.Tar(t, reg("x", ""))),
		do: func() {
			require.NoError(t, removeRef(t, other, "base:1", false))
			require.NoError(t, os.Remove(blob))
		},
	}}}})
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = s.Get(t.Context(), "new")
	require.ErrorIs(t, err, errs.ErrNotFound)
}

// hook calls do before the first read.
type hook struct {
	r  io.Reader
	do func()
}

func (h *hook) Read(p []byte) (int, error) {
	if h.do != nil {
		h.do()
		h.do = nil
	}
	return h.r.Read(p)
}

func TestUsersKeepImages(t *testing.T) {
	s := openStore(t)
	other := openStore(t, func(c *Config) { c.Dir = s.dir })
	img := build(t, s, "a", nil, 5000)
	ctx := t.Context()
	_, err := s.Use(ctx, "none", User{ID: "x"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = s.Use(ctx, "a", User{ID: "../x"})
	require.ErrorIs(t, err, errs.ErrInvalid)
	for i := range 12 {
		_, err = s.Use(ctx, "a", User{ID: fmt.Sprintf("c%d", i), Name: fmt.Sprintf("n%02d", i), Group: "g", Lasting: i > 0})
		require.NoError(t, err)
	}
	s.Renew(User{ID: "c0", Name: "renamed", Image: img.ID})
	users, err := other.Users(ctx)
	require.NoError(t, err)
	require.Len(t, users[img.ID], 12)
	require.Equal(t, User{ID: "c0", Name: "renamed", Image: img.ID}, users[img.ID][11])
	require.ErrorContains(t, other.checkUnused(ctx, img.ID, false), "n01, n02, n03, n04, n05, n06, n07, n08, n09, n10 and 2 more")
	require.ErrorIs(t, other.checkUnused(ctx, img.ID, false), errs.ErrInUse)
	for i := range 10 {
		s.Unuse(fmt.Sprintf("c%d", i+2))
	}
	s.Unuse("c2") // again

	// The one that does not last ends with its store; the other one is forgotten when its owner does not know it.
	require.NoError(t, s.Close())
	users, err = other.Users(ctx)
	require.NoError(t, err)
	require.Equal(t, []User{{ID: "c1", Name: "n01", Image: img.ID, Group: "g", Lasting: true}}, users[img.ID])
	p, err := other.Prune(ctx, PruneOptions{All: true, LayerImages: true})
	require.NoError(t, err)
	require.Zero(t, p)
	left, err := filepath.Glob(filepath.Join(s.dir, "uses", "c0*"))
	require.NoError(t, err)
	require.Empty(t, left)
	ours := func(g string) bool { return g == "g" }
	_, err = other.Use(ctx, "a", User{ID: "foreign", Group: "h", Lasting: true})
	require.NoError(t, err)
	require.NoError(t, other.Restore(ctx, ours, []User{{ID: "c9", Name: "nine", Image: img.ID, Group: "g", Lasting: true}}))
	users, err = other.Users(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"foreign", "c9"}, []string{users[img.ID][0].ID, users[img.ID][1].ID})
	require.NoError(t, other.Restore(ctx, ours, nil))
	other.Unuse("foreign")
	p, err = other.Prune(ctx, PruneOptions{All: true})
	require.NoError(t, err)
	require.Len(t, p.Images, 1)
	require.Equal(t, []string{"docker.io/library/a:latest"}, p.Images[0].Names)
}

// Machines that go on from a saved one have containers with the ids of those that were saved.
func TestUsersOfOneID(t *testing.T) {
	s := openStore(t)
	other := openStore(t, func(c *Config) { c.Dir = s.dir })
	ctx := t.Context()
	img := build(t, s, "a", nil, 10)
	for i, u := range []*Store{s, s, other} {
		_, err := u.Use(ctx, "a", User{ID: "c", Name: fmt.Sprint(i), Lasting: i == 0})
		require.NoError(t, err)
	}
	for want := 3; want > 0; want-- {
		users, err := s.Users(ctx)
		require.NoError(t, err)
		require.Len(t, users[img.ID], want)
		if want == 3 {
			other.Unuse("c")
		} else {
			s.Unuse("c")
		}
	}
	users, err := s.Users(ctx)
	require.NoError(t, err)
	require.Empty(t, users)
}

// Half a record of a user, as a power cut may leave one, is in nobody's way.
func TestDamagedUserIsForgotten(t *testing.T) {
	s := openStore(t)
	img := build(t, s, "a", nil, 10)
	require.NoError(t, os.WriteFile(s.usePath("c1", ""), []byte("{"), 0o600))
	require.NoError(t, s.checkUnused(t.Context(), img.ID, false))
	_ = openStore(t, func(c *Config) { c.Dir = s.dir })
	require.NoFileExists(t, s.usePath("c1", ""))
}

func TestLayerImagesArePrunedAndMadeAgain(t *testing.T) {
	s := openStore(t)
	a, b := build(t, s, "a", nil, 300_000), build(t, s, "bb", nil, 300_000)
	_, err := s.Use(t.Context(), "a", User{ID: "c"})
	require.NoError(t, err)
	p, err := s.Prune(t.Context(), PruneOptions{LayerImages: true})
	require.NoError(t, err)
	require.Equal(t, []int{0, 0, 1}, []int{len(p.Images), p.Blobs, p.Layers})
	for _, img := range []Image{a, b} {
		_, err = s.Layers(t.Context(), img)
		require.NoError(t, err)
	}
}

func TestDiskUsage(t *testing.T) {
	s := openStore(t)
	d, err := s.DiskUsage(t.Context())
	require.NoError(t, err)
	require.Zero(t, d)
	build(t, s, "a", nil, 1<<20)
	b := build(t, s, "bb", nil, 2<<20)
	_, err = s.Use(t.Context(), "bb", User{ID: "c"})
	require.NoError(t, err)
	d, err = s.DiskUsage(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int{2, 1, 6, 3, 2, 1}, []int{d.Images.Count, d.Images.Active, d.Blobs.Count, d.Blobs.Active, d.LayerImages.Count, d.LayerImages.Active})
	require.Equal(t, d.Blobs.Bytes+d.LayerImages.Bytes, d.Images.Bytes)
	require.InDelta(t, 6<<20, d.Images.Bytes, 300_000)
	require.InDelta(t, 2<<20, d.Images.Reclaimable, 150_000)
	p, err := s.Prune(t.Context(), PruneOptions{All: true, LayerImages: true})
	require.NoError(t, err)
	require.Equal(t, d.Images.Reclaimable, p.Bytes)
	after, err := s.DiskUsage(t.Context())
	require.NoError(t, err)
	require.Zero(t, after.Images.Reclaimable)
	require.Equal(t, d.Images.Bytes-p.Bytes, after.Images.Bytes)
	require.Equal(t, b.ID, slices.Collect(func(yield func(digest.Digest) bool) {
		list, _ := s.List(t.Context())
		for _, img := range list {
			if !yield(img.ID) {
				return
			}
		}
	})[0])
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "records", "x.json"), nil, 0o600))
	_, err = s.DiskUsage(t.Context())
	require.ErrorIs(t, err, errs.ErrCorrupt)
}

func TestPruneObeysContext(t *testing.T) {
	s := openStore(t)
	unlock, err := fsx.TryLock(s.lockPath("gc"), false)
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err = s.Prune(ctx, PruneOptions{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
