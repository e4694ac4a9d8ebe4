package guest_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func limited(r api.Resources) spec { return func(req *api.CreateRequest) { req.Resources = r } }

func TestLimits(t *testing.T) {
	m := useMachine(t)
	const files = `cd /sys/fs/cgroup; cat memory.max memory.swap.max cpu.max cpu.weight cpuset.cpus pids.max`
	for name, tc := range map[string]struct {
		limits api.Resources
		want   string
	}{
		"none": {api.Resources{}, "max\nmax\nmax 100000\n100\n\nmax\n"},
		"all": {api.Resources{Memory: 64 << 20, MemorySwap: 96 << 20, CPUQuota: 50000, CPUPeriod: 200000, CPUShares: 512, CPUSet: "0", PIDs: 50},
			"67108864\n33554432\n50000 200000\n59\n0\n50\n"},
		"swap as memory": {api.Resources{Memory: 64 << 20, CPUShares: 1024}, "67108864\n67108864\nmax 100000\n100\n\nmax\n"},
		"explicit none":  {api.Resources{Memory: 64 << 20, MemorySwap: -1, CPUQuota: -1, PIDs: -1}, "67108864\nmax\nmax 100000\n100\n\nmax\n"},
		"no swap":        {api.Resources{Memory: 64 << 20, MemorySwap: 64 << 20, CPUQuota: 20000}, "67108864\n0\n20000 100000\n100\n\nmax\n"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, m.sh(t, files, limited(tc.limits))) })
	}
	t.Run("processors that are not there", func(t *testing.T) {
		err := m.Create(testContext(t), request(t, []string{"true"}, limited(api.Resources{CPUSet: "4000"})))
		require.ErrorIs(t, err, errs.ErrInvalid)
	})
	t.Run("PIDs", func(t *testing.T) {
		r, err := m.run(t, request(t, []string{"sh", "-c", "for i in 1 2 3 4 5 6; do sleep 100 & done; wait"}, limited(api.Resources{PIDs: 3})), "")
		require.NoError(t, err)
		require.Contains(t, r.stderr, "fork")
	})
	t.Run("I/O weight", func(t *testing.T) {
		err := m.Create(testContext(t), request(t, []string{"true"}, limited(api.Resources{IOWeight: 500})))
		if err != nil {
			require.ErrorIs(t, err, errs.ErrUnsupported)
			require.ErrorContains(t, err, "io")
			return
		}
		require.NoError(t, m.Remove(testContext(t), api.RemoveRequest{ID: request(t, nil).ID}))
	})
}

func TestOOMIsAnEvent(t *testing.T) {
	m := useMachine(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	events, err := m.Events(ctx)
	require.NoError(t, err)
	next := func(id string) api.Event {
		for e := range events {
			if e.ID == id {
				return e
			}
		}
		t.Fatal("the events have ended")
		return api.Event{}
	}
	limit := limited(api.Resources{Memory: 16 << 20, MemorySwap: 16 << 20})
	t.Run("of the first process", func(t *testing.T) {
		req := request(t, []string{"probe", "eat"}, limit)
		r, err := m.run(t, req, "")
		require.NoError(t, err)
		require.Equal(t, api.Exit{Code: 137, Signal: "KILL", OOMKilled: true}, r.exit)
		require.Equal(t, api.EventOOM, next(req.ID).Kind)
		require.Equal(t, api.EventExit, next(req.ID).Kind)
	})
	t.Run("of another one", func(t *testing.T) {
		req := request(t, []string{"sh", "-c", "probe eat; cat"}, limit, func(r *api.CreateRequest) { r.Process.Stdin = true })
		m.create(t, req)
		_, err := m.Start(ctx, api.StartRequest{ID: req.ID})
		require.NoError(t, err)
		require.Equal(t, api.EventOOM, next(req.ID).Kind, "while the container runs on")
		require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "KILL"}))
		e := next(req.ID)
		require.Equal(t, api.EventExit, e.Kind)
		require.True(t, e.Exit.OOMKilled)
	})
}

func TestPause(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "trap 'echo term' TERM; echo ready; while true; do read l && echo $l; done"}, func(r *api.CreateRequest) { r.Process.Stdin = true })
	m.create(t, req)
	pause := func(resume bool) error { return m.Pause(ctx, api.PauseRequest{ID: req.ID, Resume: resume}) }
	require.ErrorIs(t, pause(false), errs.ErrConflict, "it does not run yet")
	out := newLines()
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: true}, out, nil)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	out.await(t, "ready")
	require.ErrorIs(t, pause(true), errs.ErrConflict)
	for range 3 {
		require.NoError(t, pause(false))
		err := pause(false)
		require.ErrorIs(t, err, errs.ErrConflict)
		require.ErrorContains(t, err, "paused")
		require.ErrorContains(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID}), "paused")
		require.NoError(t, m.Update(ctx, api.UpdateRequest{ID: req.ID, Resources: api.Resources{PIDs: 10}}))
		require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "TERM"}))
		require.NoError(t, pause(true))
		out.await(t, "term")
	}
	require.NoError(t, pause(false))
	require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "KILL"}))
	w, err := m.Wait(ctx, api.WaitRequest{ID: req.ID})
	require.NoError(t, err)
	require.Equal(t, "KILL", w.Exit.Signal)
	require.ErrorIs(t, pause(true), errs.ErrConflict)
	require.ErrorIs(t, m.Pause(ctx, api.PauseRequest{ID: "none"}), errs.ErrNotFound)
}

func TestUpdate(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "cat; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max"},
		func(r *api.CreateRequest) { r.Process.Stdin = true })
	m.create(t, req)
	update := func(r api.Resources) error {
		return m.Update(ctx, api.UpdateRequest{ID: req.ID, Resources: r})
	}
	require.ErrorIs(t, update(api.Resources{MemorySwap: 64 << 20}), errs.ErrInvalid, "without a limit of memory")
	require.NoError(t, update(api.Resources{Memory: 32 << 20, MemorySwap: -1, PIDs: 20, CPUPeriod: 50000}))
	out := newLines()
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: true}, out, nil)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	require.NoError(t, update(api.Resources{MemorySwap: 48 << 20, CPUQuota: 10000}))
	require.ErrorIs(t, update(api.Resources{Memory: 1}), errs.ErrInvalid)
	require.NoError(t, p.Stdin().Close())
	for _, want := range []string{"33554432", "16777216", "10000 50000", "20"} {
		out.await(t, want)
	}
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, update(api.Resources{PIDs: -1}), "after the exit")
	require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID}))
	require.ErrorIs(t, update(api.Resources{PIDs: -1}), errs.ErrNotFound)
}
