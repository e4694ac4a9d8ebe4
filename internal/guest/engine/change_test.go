package engine_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestPause(t *testing.T) {
	a := agenttest.New(map[string]agenttest.Command{"run": func(ctx context.Context, p *agenttest.Process) int {
		select {
		case <-p.Signals:
		case <-ctx.Done():
		}
		return 0
	}})
	defer a.Close()
	c, ctx := agent.New(a.Dial), t.Context()
	pause := func(resume bool) error { return c.Pause(ctx, api.PauseRequest{ID: "a", Resume: resume}) }
	conflict := func(err error, state string) {
		t.Helper()
		require.ErrorIs(t, err, errs.ErrConflict)
		require.ErrorContains(t, err, state)
	}
	require.ErrorIs(t, pause(false), errs.ErrNotFound)
	require.NoError(t, c.Create(ctx, api.CreateRequest{ID: "a", Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{"run"}}}))
	conflict(pause(false), "created")
	conflict(pause(true), "created")
	_, err := c.Start(ctx, api.StartRequest{ID: "a"})
	require.NoError(t, err)
	conflict(pause(true), "running")
	require.NoError(t, pause(false))
	conflict(pause(false), "paused")
	conflict(c.Remove(ctx, api.RemoveRequest{ID: "a"}), "paused")
	_, err = c.Exec(ctx, api.ExecRequest{ID: "a", ExecID: "x", Process: api.Process{Args: []string{"run"}}}, nil, nil)
	conflict(err, "paused")
	_, err = c.Start(ctx, api.StartRequest{ID: "a"})
	conflict(err, "paused")
	require.NoError(t, pause(true))
	require.NoError(t, pause(false))
	require.NoError(t, c.Kill(ctx, api.KillRequest{ID: "a", Signal: "KILL"}))
	_, err = c.Wait(ctx, api.WaitRequest{ID: "a"})
	require.NoError(t, err)
	conflict(pause(true), "exited")
	require.NoError(t, c.Update(ctx, api.UpdateRequest{ID: "a", Resources: api.Resources{PIDs: 1}}))
	require.ErrorIs(t, c.Update(ctx, api.UpdateRequest{ID: "a", Resources: api.Resources{PIDs: -2}}), errs.ErrInvalid)
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "a"}))
	require.ErrorIs(t, c.Update(ctx, api.UpdateRequest{ID: "a"}), errs.ErrNotFound)
}
