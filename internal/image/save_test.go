package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// stocked is a store with two images that share a layer.
func stocked(t *testing.T) (s *Store, a, b imagetest.Image) {
	a, b = threeLayers(t), threeLayers(t)
	a.Names, b.Names = []string{"a:1", "localhost:5000/a:2"}, []string{"b:1"}
	b.Config.Cmd, b.Layers = []string{"/b"}, b.Layers[1:]
	s = openStore(t)
	_, err := load(t, s, imagetest.OCIArchive(t, a, b))
	require.NoError(t, err)
	return s, a, b
}

func TestSaveThenLoadIsTheSame(t *testing.T) {
	s, a, b := stocked(t)
	var out, again bytes.Buffer
	refs := []string{"a:1", "localhost:5000/a:2", "b", b.ID(t).String()}
	require.ErrorIs(t, s.Save(t.Context(), &out, refs), errs.ErrNotFound, "b has no tag latest")
	require.Zero(t, out.Len(), "errors come before the first byte")
	refs[2] = "b:1"
	require.NoError(t, s.Save(t.Context(), &out, refs))
	require.NoError(t, s.Save(t.Context(), &again, refs))
	require.Equal(t, out.Bytes(), again.Bytes())
	to := openStore(t)
	got, err := load(t, to, out.Bytes())
	require.NoError(t, err)
	require.Len(t, got, 2)
	for i, img := range []imagetest.Image{a, b} {
		was, err := s.Get(t.Context(), img.Names[0])
		require.NoError(t, err)
		was.Loaded = got[i].Loaded
		require.Equal(t, was, got[i])
	}
	requireTidy(t, to)
}

// TestSaveIsADockerArchiveToo reads the archive with another library.
func TestSaveIsADockerArchiveToo(t *testing.T) {
	s, _, b := stocked(t)
	var out bytes.Buffer
	require.NoError(t, s.Save(t.Context(), &out, []string{"a:1", "b:1"}))
	tag, err := name.NewTag("b:1")
	require.NoError(t, err)
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }, &tag)
	require.NoError(t, err)
	id, err := img.ConfigName()
	require.NoError(t, err)
	require.Equal(t, b.ID(t).String(), id.String())
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, layers, len(b.Layers))
	for i, l := range layers {
		d, err := l.DiffID()
		require.NoError(t, err)
		require.Equal(t, b.Layers[i].DiffID().String(), d.String())
	}
}

func TestSaveByIDHasNoName(t *testing.T) {
	s, a, _ := stocked(t)
	var out bytes.Buffer
	require.NoError(t, s.Save(t.Context(), &out, []string{a.ID(t).Encoded()[:12]}))
	got, err := load(t, openStore(t), out.Bytes())
	require.NoError(t, err)
	require.Empty(t, got[0].Names)
}

func TestSaveErrors(t *testing.T) {
	s, a, _ := stocked(t)
	require.ErrorIs(t, s.Save(t.Context(), io.Discard, nil), errs.ErrInvalid)
	require.ErrorIs(t, s.Save(t.Context(), io.Discard, []string{"nothing"}), errs.ErrNotFound)
	require.ErrorIs(t, s.Save(t.Context(), io.Discard, []string{"UPPER"}), errs.ErrInvalid)
	full := errors.New("no room")
	pr, pw := io.Pipe()
	require.NoError(t, pr.CloseWithError(full))
	require.ErrorIs(t, s.Save(t.Context(), pw, []string{"a:1"}), full)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Save(ctx, io.Discard, []string{"a:1"}), context.Canceled)
	img, err := s.Get(t.Context(), a.ID(t).String())
	require.NoError(t, err)
	path, err := s.blobs.path(img.Layers[2].Digest)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	var out bytes.Buffer
	require.ErrorIs(t, s.Save(t.Context(), &out, []string{"a:1"}), errs.ErrNotFound)
	require.Zero(t, out.Len())
}

func TestImportRoot(t *testing.T) {
	root := imagetest.Tar(t, imagetest.Entry{Name: "f", File: imagetest.File{Mode: 0o644, Data: []byte("x")}})
	for name, blob := range map[string][]byte{"plain": root, "gzip": imagetest.Gzip(root).Blob, "zstd": imagetest.Zstd(t, root).Blob} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			before := time.Now().Add(-time.Second)
			img, err := s.Import(t.Context(), bytes.NewReader(blob), ImportOptions{
				Names: []string{"imported", "other:2"}, Comment: "from a test", Author: "me",
				Change: func(c *ocispec.ImageConfig) { c.Cmd, c.Env = []string{"/f"}, []string{"A=b"} },
			})
			require.NoError(t, err)
			require.Equal(t, []string{"docker.io/library/imported:latest", "docker.io/library/other:2"}, img.Names)
			require.Equal(t, []string{"/f"}, img.Config.Cmd)
			require.Equal(t, []string{"A=b"}, img.Config.Env)
			require.Equal(t, imagetest.Plain(root).DiffID(), img.Layers[0].DiffID)
			require.True(t, img.Created.After(before))
			disks, err := s.Layers(t.Context(), img)
			require.NoError(t, err)
			require.Equal(t, []byte("x"), readExt4(t, disks[0].Path, "/f"))
			d, err := s.Details(t.Context(), "imported")
			require.NoError(t, err)
			require.Equal(t, "me", d.Author)
			require.Len(t, d.History, 1)
			require.Equal(t, "from a test", d.History[0].Comment)
			require.Equal(t, img.Layers[0].DiffID, d.History[0].DiffID)
			requireTidy(t, s)
		})
	}
	s := openStore(t)
	why := errors.New("broken pipe")
	for name, c := range map[string]struct {
		r    io.Reader
		o    ImportOptions
		want error
	}{
		"nothing":    {bytes.NewReader(nil), ImportOptions{}, errs.ErrInvalid},
		"no archive": {bytes.NewReader(noise(1, 100_000)), ImportOptions{}, errs.ErrCorrupt},
		"cut":        {bytes.NewReader(root[:512]), ImportOptions{}, errs.ErrCorrupt},
		"cut gzip":   {bytes.NewReader(imagetest.Gzip(root).Blob[:50]), ImportOptions{}, errs.ErrCorrupt},
		"bad name":   {bytes.NewReader(root), ImportOptions{Names: []string{"UPPER"}}, errs.ErrInvalid},
		"digest":     {bytes.NewReader(root), ImportOptions{Names: []string{"x@sha256:" + imagetest.Plain(root).DiffID().Encoded()}}, errs.ErrInvalid},
		"broken":     {io.MultiReader(bytes.NewReader(root[:512]), errReader{why}), ImportOptions{}, why},
	} {
		_, err := s.Import(t.Context(), c.r, c.o)
		require.ErrorIs(t, err, c.want, name)
		requireTidy(t, s)
	}
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestDetailsTellWhatIsShared(t *testing.T) {
	s, a, b := stocked(t)
	d, err := s.Details(t.Context(), "a:1")
	require.NoError(t, err)
	require.Equal(t, a.ID(t), d.ID)
	require.Len(t, d.Usage, 3)
	require.Equal(t, []bool{false, true, true}, []bool{d.Usage[0].Shared, d.Usage[1].Shared, d.Usage[2].Shared})
	require.Greater(t, d.Usage[0].DiskSize, int64(600_000), "blob and layer image")
	require.Equal(t, d.Usage[1].DiskSize+d.Usage[2].DiskSize, d.SharedSize)
	require.Greater(t, d.DiskSize, d.SharedSize+d.Usage[0].DiskSize)
	require.Len(t, d.History, 3, "layers without a history are steps of their own")
	require.NoError(t, removeRef(t, s, b.ID(t).String(), true))
	d, err = s.Details(t.Context(), "a:1")
	require.NoError(t, err)
	require.Zero(t, d.SharedSize)
	_, err = s.Details(t.Context(), "nothing")
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestHistoryIsJoinedWithTheLayers(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	layers := []LayerInfo{{DiffID: "x", Size: 1}, {DiffID: "y", Size: 2}}
	got := steps([]ocispec.History{
		{Created: &at, CreatedBy: "ADD"}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN"}, {CreatedBy: "one too many"},
	}, layers)
	require.Equal(t, []Step{
		{Created: at, CreatedBy: "ADD", DiffID: "x", Size: 1}, {CreatedBy: "ENV", Empty: true}, {CreatedBy: "RUN", DiffID: "y", Size: 2},
		{CreatedBy: "one too many"},
	}, got)
	require.Equal(t, []Step{{DiffID: "x", Size: 1}, {DiffID: "y", Size: 2}}, steps(nil, layers))
}

func TestSelectFilters(t *testing.T) {
	at := func(sec int64, names ...string) imagetest.Image {
		img := threeLayers(t)
		img.Names, img.Layers = names, img.Layers[:1]
		img.Config.Labels = map[string]string{"n": itoa(int(sec)), "all": ""}
		cfg := bytes.Replace(img.ConfigBlob(t), []byte("2023-11-14T22:13:20Z"), []byte(time.Unix(sec, 0).UTC().Format(time.RFC3339)), 1)
		img.ConfigJSON = cfg
		return img
	}
	s := openStore(t)
	_, err := load(t, s, imagetest.OCIArchive(t, at(100, "old:1", "team/old:2"), at(200, "mid:1"), at(300, "new:1"), at(400)))
	require.NoError(t, err)
	yes, no := true, false
	for name, c := range map[string]struct {
		f    Filter
		want []string
	}{
		"all":         {Filter{}, []string{"old:1", "team/old:2", "mid:1", "new:1", ""}},
		"dangling":    {Filter{Dangling: &yes}, []string{""}},
		"named":       {Filter{Dangling: &no}, []string{"old:1", "team/old:2", "mid:1", "new:1"}},
		"reference":   {Filter{References: []string{"old"}}, []string{"old:1"}},
		"pattern":     {Filter{References: []string{"*:1"}}, []string{"old:1", "mid:1", "new:1"}},
		"two":         {Filter{References: []string{"team/*", "mid:1"}}, []string{"team/old:2", "mid:1"}},
		"full":        {Filter{References: []string{"docker.io/library/mid:1"}}, []string{"mid:1"}},
		"label":       {Filter{Labels: []string{"all"}}, []string{"old:1", "team/old:2", "mid:1", "new:1", ""}},
		"label value": {Filter{Labels: []string{"all", "n=200"}}, []string{"mid:1"}},
		"before":      {Filter{Before: "mid:1"}, []string{"old:1", "team/old:2"}},
		"since":       {Filter{Since: "mid:1", Dangling: &no}, []string{"new:1"}},
		"between":     {Filter{Since: "old:1", Before: "new:1"}, []string{"mid:1"}},
		"none":        {Filter{References: []string{"nothing"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			images, err := s.Select(t.Context(), c.f)
			require.NoError(t, err)
			var got, want []string
			for _, img := range images {
				if got = append(got, img.Names...); len(img.Names) == 0 {
					got = append(got, "")
				}
			}
			for _, w := range c.want {
				if w != "" {
					w, err = Normalize(w)
					require.NoError(t, err)
				}
				want = append(want, w)
			}
			require.ElementsMatch(t, want, got)
		})
	}
	for _, f := range []Filter{{References: []string{"["}}, {References: []string{""}}, {Labels: []string{"=x"}}} {
		_, err := s.Select(t.Context(), f)
		require.ErrorIs(t, err, errs.ErrInvalid)
	}
	_, err = s.Select(t.Context(), Filter{Since: "nothing"})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestUntagKeepsTheImage(t *testing.T) {
	s, a, _ := stocked(t)
	_, err := s.Untag(t.Context(), a.ID(t).String())
	require.ErrorIs(t, err, errs.ErrInvalid)
	for _, n := range []string{"a:1", "localhost:5000/a:2"} {
		got, err := s.Untag(t.Context(), n)
		require.NoError(t, err)
		require.False(t, got.Gone)
		require.Len(t, got.Names, 1)
	}
	img, err := s.Get(t.Context(), a.ID(t).String())
	require.NoError(t, err)
	require.Empty(t, img.Names)
	_, err = s.Untag(t.Context(), "a:1")
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestRemoveLooksWhoUsesTheImage(t *testing.T) {
	s, a, b := stocked(t)
	other := openStore(t, func(c *Config) { c.Dir = s.dir })
	ctx := t.Context()
	for _, lasting := range []bool{false, true} {
		by := User{ID: fmt.Sprint(lasting), Name: fmt.Sprint("runs-", lasting), Image: a.ID(t), Lasting: lasting}
		_, err := other.Use(ctx, "a:1", by)
		require.NoError(t, err)
		require.NoError(t, other.Run(ctx, by))
	}
	users, err := s.Users(ctx)
	require.NoError(t, err)
	require.True(t, users[a.ID(t)][0].Running)
	got, err := s.Remove(ctx, "a:1", RemoveOptions{})
	require.NoError(t, err, "the image has another name")
	require.False(t, got.Gone)
	for _, ref := range []string{"localhost:5000/a:2", a.ID(t).String()} {
		_, err = s.Remove(ctx, ref, RemoveOptions{Force: true})
		require.ErrorIs(t, err, errs.ErrInUse)
		require.ErrorContains(t, err, "running containers runs-false, runs-true: stop them")
		_, err = s.Remove(ctx, ref, RemoveOptions{})
		require.ErrorContains(t, err, "containers runs-false, runs-true: remove those")
	}
	other.Renew(User{ID: "true", Name: "rests", Image: a.ID(t), Lasting: true})
	_, err = s.Remove(ctx, a.ID(t).String(), RemoveOptions{Force: true})
	require.ErrorContains(t, err, "running containers runs-false:")
	require.NoError(t, other.Run(ctx, User{ID: "true", Name: "again", Image: a.ID(t), Lasting: true}))
	require.NoError(t, other.Close()) // nothing runs in it any more
	_, err = s.Remove(ctx, a.ID(t).String(), RemoveOptions{})
	require.ErrorContains(t, err, "by the containers again:")
	got, err = s.Remove(ctx, a.ID(t).String(), RemoveOptions{Force: true})
	require.NoError(t, err)
	require.True(t, got.Gone)
	err = s.Run(ctx, User{ID: "true", Image: a.ID(t), Lasting: true})
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.ErrorContains(t, err, "removed by force")
	got, err = s.Remove(ctx, b.ID(t).String(), RemoveOptions{})
	require.NoError(t, err)
	require.True(t, got.Gone)
	require.Equal(t, []string{"docker.io/library/b:1"}, got.Names)
}
