package arcbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// TestImageTravels sends an image through a registry and through an archive, with its events, and needs no machine.
func TestImageTravels(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ctx := testContext(t)
	rt, other := newRuntime(t, testConfig(t)), newRuntime(t, testConfig(t))
	loadBusybox(t, rt)
	events, stop := context.WithCancel(ctx)
	defer stop()
	ch := rt.Events(events, arcbox.EventsOptions{})
	ref := reg.Host + "/team/box:1"
	require.NoError(t, rt.TagImage(ctx, "busybox:test", ref))
	var states []arcbox.LayerState
	pushed, err := rt.PushImage(ctx, ref, arcbox.PushOptions{Progress: func(p arcbox.LayerProgress) { states = append(states, p.State) }})
	require.NoError(t, err)
	require.Equal(t, arcbox.LayerWaiting, states[0])
	require.Equal(t, arcbox.LayerDone, states[len(states)-1])
	require.NoError(t, rt.UntagImage(ctx, ref))
	for _, want := range []event.Kind{event.ImageTagged, event.ImageLayer, event.ImagePushed, event.ImageUntagged} {
		e := <-ch
		for ; e.Kind == event.ImageLayer && want != event.ImageLayer; e = <-ch {
			require.NotEmpty(t, e.Attributes[event.AttrState])
		}
		require.Equal(t, want, e.Kind)
		require.Equal(t, ref, e.Image)
	}

	_, err = other.PullImage(ctx, ref, arcbox.PullOptions{Policy: arcbox.PullNever})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = other.PullImage(ctx, ref, arcbox.PullOptions{Policy: "sometimes"})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	_, err = other.PullImage(ctx, ref, arcbox.PullOptions{Platform: "linux"})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	_, err = other.PullImage(ctx, ref, arcbox.PullOptions{Platform: "linux/s390x"})
	require.ErrorIs(t, err, arcbox.ErrUnsupported)
	got, err := other.PullImage(ctx, ref, arcbox.PullOptions{Policy: arcbox.PullMissing})
	require.NoError(t, err)
	require.Equal(t, pushed.Digest, got.Digest)
	reg.Wrap(nil)

	pr, pw := io.Pipe()
	go func() { _ = pw.CloseWithError(rt.SaveImage(ctx, pw, "busybox:test")) }()
	loaded, err := other.LoadImageFrom(ctx, pr, arcbox.LoadOptions{Name: "third"})
	require.NoError(t, err)
	require.Equal(t, pushed.ID, loaded[0].ID)
	require.Len(t, loaded[0].Names, 3)
	require.ErrorIs(t, rt.SaveImage(ctx, io.Discard, "nothing"), arcbox.ErrNotFound)
}

// TestImageOfAnotherPlatform is refused before a machine is started for it.
func TestImageOfAnotherPlatform(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ctx := testContext(t)
	rt := newRuntime(t, testConfig(t))
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	img.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	ref := reg.Push(t, "app", "1", img)
	info, err := rt.PullImage(ctx, ref, arcbox.PullOptions{Platform: "linux/s390x"})
	require.NoError(t, err)
	require.Equal(t, "linux/s390x", info.Platform)
	_, err = rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: ref}, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnsupported)
	require.ErrorContains(t, err, "linux/s390x")
}

func TestRemoveImageNamesWhoUsesIt(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	img.Names, img.Config.Labels = []string{"removable:1"}, map[string]string{"remove": "me"}
	info := load(t, rt, img)
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Name: "remove-user", Image: "removable:1", Args: []string{"sleep", "1000"}}, arcbox.RunOptions{})
	require.NoError(t, err)
	defer p.Close()
	_, err = rt.RemoveImage(ctx, "removable:1", arcbox.RemoveImageOptions{})
	require.ErrorIs(t, err, arcbox.ErrInUse)
	require.ErrorContains(t, err, "remove-user")
	_, err = rt.RemoveImage(ctx, info.ID, arcbox.RemoveImageOptions{Force: true})
	require.ErrorIs(t, err, arcbox.ErrInUse, "it runs")
	require.NoError(t, rt.TagImage(ctx, "removable:1", "removable:2"))
	got, err := rt.RemoveImage(ctx, "removable:1", arcbox.RemoveImageOptions{})
	require.NoError(t, err, "it has another name")
	require.False(t, got.Deleted)
	require.NoError(t, rt.KillContainer(ctx, "remove-user", "KILL"))
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	_, err = rt.RemoveImage(ctx, "removable:2", arcbox.RemoveImageOptions{})
	require.ErrorContains(t, err, "remove-user")
	got, err = rt.RemoveImage(ctx, "removable:2", arcbox.RemoveImageOptions{Force: true})
	require.NoError(t, err)
	require.Equal(t, arcbox.RemovedImage{ID: info.ID, Untagged: []string{"docker.io/library/removable:2"}, Deleted: true}, got)
	require.NoError(t, rt.RemoveContainer(ctx, "remove-user", arcbox.RemoveOptions{}))
	_, err = rt.RemoveImage(ctx, "removable:2", arcbox.RemoveImageOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
}

// TestImportWhatWasExported makes an image of a container's root and runs it.
func TestImportWhatWasExported(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	root, err := rt.ExportContainer(ctx, "keep")
	require.NoError(t, err)
	_, err = rt.ImportImage(ctx, root, arcbox.ImportOptions{Names: []string{"imported:1"}, Comment: "of keep", Change: func(c *ocispec.ImageConfig) {
		c.Cmd, c.Env = []string{"echo", "hello"}, []string{"PATH=/bin"}
	}})
	require.NoError(t, errors.Join(err, root.Close()))
	require.Equal(t, result{stdout: "hello\n"}, run(t, rt, arcbox.ContainerSpec{Image: "imported:1"}, arcbox.RunOptions{}))
	d, err := rt.InspectImage(ctx, "imported:1")
	require.NoError(t, err)
	require.Equal(t, "of keep", d.History[0].Comment)
	require.Equal(t, []string{"echo", "hello"}, d.Config.Cmd)
	require.Len(t, d.LayerList, 1)
	require.Greater(t, d.DiskSize, d.Size)
	list, err := rt.ListImages(ctx, arcbox.ListImagesOptions{References: []string{"imported"}})
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = rt.ImportImage(ctx, bytes.NewReader(nil), arcbox.ImportOptions{})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	_, err = rt.RemoveImage(ctx, "imported:1", arcbox.RemoveImageOptions{})
	require.NoError(t, err)
}
