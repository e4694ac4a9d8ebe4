package container

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// markedImages knows what it was told of containers.
type markedImages struct {
	fakeImages
	mu    sync.Mutex
	users map[string]image.User
	gone  bool // the image was removed by force
}

func (f *markedImages) Use(ctx context.Context, ref string, by image.User) (image.Image, error) {
	img, err := f.Get(ctx, ref)
	if by.Image = img.ID; err == nil {
		f.Renew(by)
	}
	return img, err
}

func (f *markedImages) Run(_ context.Context, by image.User) error {
	if f.gone {
		return fmt.Errorf("image %w", errs.ErrNotFound)
	}
	by.Running = true
	f.Renew(by)
	return nil
}

func (f *markedImages) Renew(by image.User) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users[by.ID] = by
}

func (f *markedImages) Unuse(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.users, id)
}

func (f *markedImages) of(id string) image.User {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.users[id]
}

// TestStoreKnowsWhatRuns holds for every way in which a container begins to run and ends.
func TestStoreKnowsWhatRuns(t *testing.T) {
	m, f, _ := newFake(t)
	images := &markedImages{users: map[string]image.User{}}
	m.cfg.Images = images
	ctx := t.Context()
	i, err := m.Create(ctx, Spec{Name: "a", Image: "app", Restart: RestartPolicy{Name: RestartOnFailure, MaxRetries: 1}})
	require.NoError(t, err)
	runs := func() bool { return images.of(i.ID).Running }
	require.False(t, runs())
	require.NoError(t, m.Start(ctx, "a"))
	require.True(t, runs())
	require.NoError(t, m.Pause(ctx, "a"))
	require.NoError(t, m.Rename(ctx, "a", "b"))
	require.Equal(t, "b", images.of(i.ID).Name)
	require.True(t, runs())
	f.exit(i.ID, api.Exit{Code: 1})
	require.True(t, runs(), "it is started again soon")
	require.NoError(t, m.Stop(ctx, "b", "", nil))
	require.False(t, runs())

	for _, err := range []error{errs.ErrNoCommand, context.Canceled} {
		f.startErr = err
		require.ErrorIs(t, m.Start(ctx, "b"), err)
		require.False(t, runs())
	}
	f.startErr = nil
	require.NoError(t, m.Start(ctx, "b"))
	f.exit(i.ID, api.Exit{})
	require.False(t, runs())
	starts := f.starts
	images.gone = true
	require.ErrorIs(t, m.Start(ctx, "b"), errs.ErrNotFound)
	require.Equal(t, starts, f.starts, "the guest was not asked")
	images.gone = false
	require.NoError(t, m.Start(ctx, "b"))
	require.NoError(t, m.Remove(ctx, "b", true))
	require.Empty(t, images.users)
}
