package container

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func (f *fakeMachine) Stat(_ context.Context, req api.StatRequest) (api.StatReply, error) {
	if req.Path == "/none" {
		return api.StatReply{}, errs.ErrNotFound
	}
	return api.StatReply{Name: req.ID}, nil
}

func (f *fakeMachine) CopyFrom(_ context.Context, req api.CopyFromRequest) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(req.ID + req.Path)), nil
}

func (f *fakeMachine) CopyTo(_ context.Context, req api.CopyToRequest, r io.Reader) error {
	b, err := io.ReadAll(r)
	return errors.Join(err, errors.New(req.ID+req.Path+string(b)))
}

func (f *fakeMachine) Export(_ context.Context, req api.ExportRequest) (io.ReadCloser, error) {
	if req.Layer {
		return nil, errs.ErrUnsupported
	}
	return io.NopCloser(strings.NewReader(req.ID)), nil
}

func (f *fakeMachine) Diff(_ context.Context, req api.DiffRequest) (api.DiffReply, error) {
	return api.DiffReply{Changes: []api.Change{{Path: req.ID}}}, nil
}

func TestFilesHoldTheMachineWhileTheyAreRead(t *testing.T) {
	m, host, _ := newFakeHost(t, "")
	ctx := context.Background()
	info, err := m.Create(ctx, Spec{Image: "app", Name: "box", Args: []string{"x"}})
	require.NoError(t, err)
	holds := func() int {
		f := host.machine()
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.holds
	}
	before := holds()
	r, st, err := m.CopyFrom(ctx, "box", "/p")
	require.NoError(t, err)
	require.Equal(t, info.ID, st.Name)
	require.Equal(t, before+1, holds())
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, info.ID+"/p", string(b))
	require.NoError(t, r.Close())
	require.NoError(t, r.Close())
	require.Equal(t, before, holds())
	_, _, err = m.CopyFrom(ctx, "box", "/none")
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = m.Export(ctx, "box", true)
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.ErrorContains(t, m.CopyTo(ctx, "box", api.CopyToRequest{Path: "/d"}, strings.NewReader("data")), info.ID+"/ddata")
	d, err := m.Diff(ctx, "box")
	require.NoError(t, err)
	require.Equal(t, info.ID, d.Changes[0].Path)
	_, err = m.Stat(ctx, "other", "/")
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.Equal(t, before, holds())
}
