package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func loadBase(t *testing.T, s *Store) Image {
	t.Helper()
	images, err := s.LoadStream(context.Background(), bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{
		Names:      []string{"base:1"},
		Layers:     []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.Entry{Name: "a"}))},
		ConfigJSON: nil, Config: ocispec.ImageConfig{Env: []string{"A=1"}, Cmd: []string{"sh"}, User: "app"},
	})), LoadOptions{})
	require.NoError(t, err)
	require.Len(t, images, 1)
	return images[0]
}

func TestCommit(t *testing.T) {
	ctx := context.Background()
	s := openStore(t)
	base := loadBase(t, s)
	layer := imagetest.Tar(t, imagetest.Entry{Name: "b"}, imagetest.Entry{Name: ".wh.a"})
	gz := imagetest.Gzip(layer)
	for name, blob := range map[string][]byte{"plain": layer, "gzip": gz.Blob} {
		t.Run(name, func(t *testing.T) {
			img, err := s.Commit(ctx, base, bytes.NewReader(blob), CommitOptions{
				Names: []string{name}, Author: "me", Comment: "a change", CreatedBy: "sh",
				Change: func(c *ocispec.ImageConfig) { c.Cmd, c.User = []string{"true"}, "" },
			})
			require.NoError(t, err)
			require.Equal(t, []string{"docker.io/library/" + name + ":latest"}, img.Names)
			require.Equal(t, []string{"true"}, img.Config.Cmd)
			require.Equal(t, []string{"A=1"}, img.Config.Env)
			require.Empty(t, img.Config.User)
			require.Len(t, img.Layers, 2)
			require.Equal(t, base.Layers[0].DiffID, img.Layers[0].DiffID)
			require.Equal(t, gz.DiffID(), img.Layers[1].DiffID)
			disks, err := s.Layers(ctx, img)
			require.NoError(t, err)
			require.Len(t, disks, 2)
			again, err := s.Get(ctx, name)
			require.NoError(t, err)
			require.Equal(t, img, again)
			_, err = s.Prune(ctx, PruneOptions{})
			require.NoError(t, err)
			_, err = s.Get(ctx, img.ID.String())
			require.NoError(t, err, "what the image needs is kept")
		})
	}
	same, err := s.Get(ctx, "base:1")
	require.NoError(t, err)
	require.Equal(t, base, same, "the base is as it was")
}

func TestCommitKeepsWhatItDoesNotKnow(t *testing.T) {
	old := `{"architecture":"amd64","os":"linux","x":{"y":[1]},"config":{"User":"u","Healthcheck":{"Test":["NONE"]},"OnBuild":["RUN x"]},
		"rootfs":{"type":"layers","diff_ids":[]},"history":[{"comment":"first"}]}`
	diffID := imagetest.Plain([]byte("x")).DiffID()
	change := configChange{
		layers: []digest.Digest{diffID}, history: []ocispec.History{{Comment: "second"}}, created: time.Unix(0, 0),
		change: func(c *ocispec.ImageConfig) { c.User, c.WorkingDir = "", "/w" },
	}
	data, err := change.apply([]byte(old))
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(data, &got))
	require.Equal(t, map[string]any{"y": []any{1.0}}, got["x"])
	require.Equal(t, map[string]any{"WorkingDir": "/w", "Healthcheck": map[string]any{"Test": []any{"NONE"}}, "OnBuild": []any{"RUN x"}}, got["config"])
	require.Equal(t, []any{diffID.String()}, got["rootfs"].(map[string]any)["diff_ids"])
	require.Len(t, got["history"], 2)
}

func TestCommitErrors(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, func(c *Config) { c.Limits.Layers, c.Limits.BlobSize = 2, 1<<20 })
	base := loadBase(t, s)
	good := imagetest.Tar(t, imagetest.Entry{Name: "b"})
	broken := errors.New("the machine went away")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	gone := base
	gone.ID = imagetest.Plain([]byte("nothing")).DiffID()
	full, err := s.Commit(ctx, base, bytes.NewReader(good), CommitOptions{})
	require.NoError(t, err)
	before, err := s.List(ctx)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		ctx   context.Context
		base  Image
		layer io.Reader
		names []string
		want  error
	}{
		"no archive":      {ctx, base, strings.NewReader(strings.Repeat("x", 2000)), nil, errs.ErrCorrupt},
		"cut":             {ctx, base, bytes.NewReader(good[:700]), nil, errs.ErrCorrupt},
		"reader fails":    {ctx, base, io.MultiReader(bytes.NewReader(good[:512]), iotest.ErrReader(broken)), nil, broken},
		"cancelled":       {ended, base, bytes.NewReader(good), nil, context.Canceled},
		"base not there":  {ctx, gone, bytes.NewReader(good), nil, errs.ErrNotFound},
		"bad name":        {ctx, base, bytes.NewReader(good), []string{"UPPER CASE"}, errs.ErrInvalid},
		"too many layers": {ctx, full, bytes.NewReader(good), nil, errs.ErrInvalid},
		"too large":       {ctx, base, bytes.NewReader(make([]byte, 2<<20)), nil, errs.ErrInvalid},
	} {
		_, err := s.Commit(c.ctx, c.base, c.layer, CommitOptions{Names: c.names})
		require.ErrorIs(t, err, c.want, name)
	}
	after, err := s.List(ctx)
	require.NoError(t, err)
	require.Equal(t, before, after)
}
