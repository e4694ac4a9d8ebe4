package container

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// started makes a container and starts it.
func started(t *testing.T, m *Manager, s Spec) Info {
	t.Helper()
	s.Image = "app"
	info, err := m.Create(t.Context(), s)
	require.NoError(t, err)
	require.NoError(t, m.Start(t.Context(), info.ID))
	return info
}

func state(t *testing.T, m *Manager, ref string) Info {
	t.Helper()
	info, err := m.Inspect(ref)
	require.NoError(t, err)
	return info
}

func TestStopAsksThenKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		f.ignores = []string{"QUIT", "INT"}
		info := started(t, m, Spec{StopSignal: "QUIT"})
		began := time.Now()
		require.NoError(t, m.Stop(t.Context(), info.ID, "", nil))
		require.Equal(t, DefaultStopTimeout, time.Since(began))
		require.Equal(t, []string{"QUIT", "KILL"}, f.signals)
		require.Equal(t, StateExited, state(t, m, info.ID).State)
		require.NoError(t, m.Stop(t.Context(), info.ID, "", nil), "a second stop does nothing")

		f.signals = nil
		info = started(t, m, Spec{StopTimeout: time.Second})
		short := 3 * time.Second
		began = time.Now()
		require.NoError(t, m.Stop(t.Context(), info.ID, "INT", &short))
		require.Equal(t, short, time.Since(began))
		require.Equal(t, []string{"INT", "KILL"}, f.signals)

		f.signals = nil
		info = started(t, m, Spec{StopTimeout: -1, StopSignal: "INT"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.ErrorIs(t, m.Stop(ctx, info.ID, "", nil), context.DeadlineExceeded)
		require.Equal(t, []string{"INT"}, f.signals, "a negative timeout never kills")
		require.ErrorIs(t, m.Stop(ctx, info.ID, "NOPE", nil), errs.ErrInvalid)
	})
}

func TestStopOfPausedResumesIt(t *testing.T) {
	m, f, _ := newFake(t)
	f.ignores = []string{"TERM"}
	info := started(t, m, Spec{})
	require.NoError(t, m.Pause(t.Context(), info.ID))
	require.Equal(t, StatePaused, state(t, m, info.ID).State)
	zero := time.Duration(0)
	require.NoError(t, m.Stop(t.Context(), info.ID, "", &zero))
	require.Equal(t, []string{"TERM", "KILL"}, f.signals)
	require.False(t, f.paused[info.ID])
}

func TestStartAgainFindsWhatWasWritten(t *testing.T) {
	m, f, _ := newFake(t)
	info := started(t, m, Spec{})
	f.exit(info.ID, api.Exit{Code: 3})
	require.NoError(t, m.Start(t.Context(), info.ID))
	require.True(t, f.kept[info.ID], "the guest keeps what the first run wrote")
	i := state(t, m, info.ID)
	require.Equal(t, StateRunning, i.State)
	require.Zero(t, i.RestartCount)
	require.Equal(t, 2, f.starts)
}

func TestExitBeforeTheReplyOfTheStart(t *testing.T) {
	m, f, bus := newFake(t)
	events := bus.Subscribe(t.Context(), event.SubscribeOptions{})
	f.early = true
	for range 2 {
		info := started(t, m, Spec{})
		exit, err := m.Wait(t.Context(), info.ID, WaitNotRunning)
		require.NoError(t, err)
		require.Equal(t, 4, exit.Code)
		for _, want := range []event.Kind{event.ContainerCreated, event.ContainerStarted, event.ContainerExited} {
			require.Equal(t, want, (<-events).Kind)
		}
	}
}

func TestAnEndThatIsReportedTwiceCountsOnce(t *testing.T) {
	m, f, _ := newFake(t)
	info := started(t, m, Spec{})
	at := time.Unix(5, 0)
	m.HandleEvent(api.Event{Kind: api.EventExit, ID: info.ID, At: at})
	f.running[info.ID] = false
	require.NoError(t, m.Start(t.Context(), info.ID))
	m.HandleEvent(api.Event{Kind: api.EventExit, ID: info.ID, At: at})
	require.Equal(t, StateRunning, state(t, m, info.ID).State)
}

func TestWaitConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		info := started(t, m, Spec{Restart: RestartPolicy{Name: RestartAlways}})
		type result struct {
			exit api.Exit
			err  error
		}
		results := map[Condition]chan result{}
		for _, c := range []Condition{WaitNotRunning, WaitNextExit, WaitRemoved} {
			ch := make(chan result, 1)
			results[c] = ch
			go func() {
				exit, err := m.Wait(context.Background(), info.ID, c)
				ch <- result{exit, err}
			}()
		}
		synctest.Wait()
		f.exit(info.ID, api.Exit{Code: 5})
		require.Equal(t, result{exit: api.Exit{Code: 5}}, <-results[WaitNextExit])
		synctest.Wait()
		require.Empty(t, results[WaitNotRunning], "it is started again")
		require.NoError(t, m.Stop(t.Context(), info.ID, "", nil))
		require.Equal(t, 5, (<-results[WaitNotRunning]).exit.Code)
		require.Empty(t, results[WaitRemoved])
		require.NoError(t, m.Remove(t.Context(), info.ID, false))
		require.Equal(t, 5, (<-results[WaitRemoved]).exit.Code)
		_, err := m.Wait(t.Context(), info.ID, "never")
		require.ErrorIs(t, err, errs.ErrInvalid)
	})
}

func TestRestartPolicies(t *testing.T) {
	for name, tt := range map[string]struct {
		policy RestartPolicy
		code   int
		starts int
	}{
		"none":           {RestartPolicy{}, 1, 1},
		"no":             {RestartPolicy{Name: RestartNo}, 1, 1},
		"always":         {RestartPolicy{Name: RestartAlways}, 0, 6},
		"unless-stopped": {RestartPolicy{Name: RestartUnlessStopped}, 0, 6},
		"on-failure":     {RestartPolicy{Name: RestartOnFailure}, 1, 6},
		"success":        {RestartPolicy{Name: RestartOnFailure}, 0, 1},
		"maximum":        {RestartPolicy{Name: RestartOnFailure, MaxRetries: 3}, 1, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, f, _ := newFake(t)
				info := started(t, m, Spec{Restart: tt.policy})
				for range 5 {
					f.exit(info.ID, api.Exit{Code: tt.code})
					time.Sleep(lastBackoff)
					synctest.Wait()
				}
				require.Equal(t, tt.starts, f.starts)
				i := state(t, m, info.ID)
				require.Equal(t, tt.starts-1, i.RestartCount)
				require.Equal(t, tt.starts == 6, i.State == StateRunning, i.State)
			})
		})
	}
}

func TestBackoffOfRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, bus := newFake(t)
		events := bus.Subscribe(t.Context(), event.SubscribeOptions{Kinds: []event.Kind{event.ContainerStarted}})
		info := started(t, m, Spec{Restart: RestartPolicy{Name: RestartAlways}})
		<-events
		var waits []time.Duration
		for i := range 5 {
			if i == 3 {
				time.Sleep(goodRun)
			}
			ended := time.Now()
			f.exit(info.ID, api.Exit{})
			require.Equal(t, StateRestarting, state(t, m, info.ID).State)
			waits = append(waits, (<-events).Time.Sub(ended))
			synctest.Wait()
		}
		ms := time.Millisecond
		require.Equal(t, []time.Duration{100 * ms, 200 * ms, 400 * ms, 100 * ms, 200 * ms}, waits)
	})
}

func TestPendingRestartIsGivenUp(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *Manager, string){
		"stop":   func(t *testing.T, m *Manager, id string) { require.NoError(t, m.Stop(t.Context(), id, "", nil)) },
		"remove": func(t *testing.T, m *Manager, id string) { require.NoError(t, m.Remove(t.Context(), id, true)) },
		"update": func(t *testing.T, m *Manager, id string) {
			_, err := m.Update(t.Context(), id, Resources{}, &RestartPolicy{Name: RestartNo})
			require.NoError(t, err)
		},
		"close": func(_ *testing.T, m *Manager, _ string) { m.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, f, _ := newFake(t)
				info := started(t, m, Spec{Restart: RestartPolicy{Name: RestartAlways}})
				f.exit(info.ID, api.Exit{Code: 1})
				require.ErrorIs(t, m.Remove(t.Context(), info.ID, false), errs.ErrConflict)
				end(t, m, info.ID)
				time.Sleep(lastBackoff)
				synctest.Wait()
				require.Equal(t, 1, f.starts)
			})
		})
	}
}

func TestKillMeansTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		f.ignores = []string{"HUP"}
		info := started(t, m, Spec{Restart: RestartPolicy{Name: RestartAlways}})
		require.NoError(t, m.Kill(t.Context(), info.ID, "HUP"))
		f.exit(info.ID, api.Exit{})
		time.Sleep(time.Second)
		require.Equal(t, StateRunning, state(t, m, info.ID).State, "HUP does not ask for the end")
		require.NoError(t, m.Kill(t.Context(), info.ID, "9"))
		time.Sleep(time.Second)
		require.Equal(t, StateExited, state(t, m, info.ID).State)
		require.ErrorIs(t, m.Kill(t.Context(), info.ID, "NOPE"), errs.ErrInvalid)
	})
}

func TestCrashOfTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, _ := newFakeHost(t, "")
		first := h.machine()
		back := started(t, m, Spec{Name: "back", Restart: RestartPolicy{Name: RestartUnlessStopped}})
		out := started(t, m, Spec{Name: "out"})
		waiting, err := m.Create(t.Context(), Spec{Name: "waiting", Image: "app"})
		require.NoError(t, err)
		first.crash(errors.New("guest panicked"))
		h.mu.Lock()
		h.err = errs.ErrUnavailable
		h.mu.Unlock()
		require.Equal(t, StateRestarting, state(t, m, back.ID).State)
		require.Equal(t, StateExited, state(t, m, out.ID).State)
		require.Contains(t, state(t, m, out.ID).Reason, "guest panicked")
		require.Equal(t, StateCreated, state(t, m, waiting.ID).State, "what had not begun can still begin")
		time.Sleep(time.Second) // in which no machine can be had
		h.mu.Lock()
		h.err = nil
		h.mu.Unlock()
		time.Sleep(lastBackoff)
		synctest.Wait()
		require.Equal(t, StateRunning, state(t, m, back.ID).State)
		require.NotSame(t, first, h.machine())
		require.NoError(t, m.Start(t.Context(), waiting.ID))
		require.NoError(t, m.Start(t.Context(), out.ID))
		require.Zero(t, first.holds)
		require.Equal(t, 3, h.machine().holds)
	})
}

func TestOrderlyStopOfTheMachineRestartsNothing(t *testing.T) {
	m, h, _ := newFakeHost(t, "")
	info := started(t, m, Spec{Restart: RestartPolicy{Name: RestartAlways}})
	h.machine().crash(nil)
	require.Equal(t, StateExited, state(t, m, info.ID).State)
	require.Equal(t, "its machine was stopped", state(t, m, info.ID).Reason)
}

func TestPersistentMachineIsHeldByWhatRuns(t *testing.T) {
	m, h, _ := newFakeHost(t, "")
	f := h.machine()
	f.persistent = true
	info := started(t, m, Spec{})
	require.Equal(t, 1, f.holds)
	f.exit(info.ID, api.Exit{})
	require.Zero(t, f.holds)
	require.NoError(t, m.Start(t.Context(), info.ID))
	require.Equal(t, 1, f.holds)
	f.exit(info.ID, api.Exit{})
	f.crash(nil) // it had nothing to do
	require.Equal(t, StateExited, state(t, m, info.ID).State)
	require.NoError(t, m.Start(t.Context(), info.ID))
	require.Equal(t, 1, h.machine().holds)
	require.NoError(t, m.Reach(t.Context(), info.ID, func(a Agent, id string) error {
		require.Equal(t, 2, h.machine().holds)
		require.Equal(t, info.ID, id)
		return nil
	}))
	require.Equal(t, 1, h.machine().holds)
}

func TestRename(t *testing.T) {
	m, _, bus := newFake(t)
	events := bus.Subscribe(t.Context(), event.SubscribeOptions{Kinds: []event.Kind{event.ContainerRenamed}})
	a := started(t, m, Spec{Name: "one"})
	started(t, m, Spec{Name: "two"})
	require.ErrorIs(t, m.Rename(t.Context(), "one", "two"), errs.ErrExists)
	require.ErrorIs(t, m.Rename(t.Context(), "one", "/"), errs.ErrInvalid)
	require.ErrorIs(t, m.Rename(t.Context(), "x", "y"), errs.ErrNotFound)
	require.NoError(t, m.Rename(t.Context(), "one", "one"))
	require.NoError(t, m.Rename(t.Context(), "one", "three"))
	e := <-events
	require.Equal(t, "three", e.Name)
	require.Equal(t, "one", e.Attributes[event.AttrOldName])
	_, err := m.Inspect("one")
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.Equal(t, a.ID, state(t, m, "three").ID)
	started(t, m, Spec{Name: "one"})
}

func TestUpdate(t *testing.T) {
	m, f, _ := newFake(t)
	info := started(t, m, Spec{Resources: Resources{Memory: 64 << 20, PIDs: 10}})
	got, err := m.Update(t.Context(), info.ID, Resources{Memory: 128 << 20, CPUs: 2}, &RestartPolicy{Name: RestartOnFailure, MaxRetries: 2})
	require.NoError(t, err)
	require.Equal(t, Resources{Memory: 128 << 20, PIDs: 10, CPUs: 2}, got.Spec.Resources)
	require.Equal(t, RestartPolicy{Name: RestartOnFailure, MaxRetries: 2}, got.Spec.Restart)
	require.Equal(t, []api.Resources{{Memory: 128 << 20, CPUQuota: 200_000, CPUPeriod: 100_000}}, f.updates)
	_, err = m.Update(t.Context(), info.ID, Resources{MemorySwap: 1 << 20}, nil)
	require.ErrorIs(t, err, errs.ErrInvalid, "with the memory it has")
	require.Len(t, f.updates, 1)
	require.NoError(t, m.Restart(t.Context(), info.ID, "", nil))
	require.Equal(t, int64(128<<20), f.requests[info.ID].Resources.Memory, "the next run has the new limits")
}

func TestFilters(t *testing.T) {
	m, f, _ := newFake(t)
	web := started(t, m, Spec{Name: "web-1", Labels: map[string]string{"tier": "front", "x": ""}})
	db := started(t, m, Spec{Name: "db", Labels: map[string]string{"tier": "back"}})
	f.exit(db.ID, api.Exit{})
	for name, tt := range map[string]struct {
		f    Filter
		want []string
	}{
		"all":         {Filter{}, []string{"web-1", "db"}},
		"state":       {Filter{States: []State{StateExited, StatePaused}}, []string{"db"}},
		"label key":   {Filter{Labels: []string{"tier"}}, []string{"web-1", "db"}},
		"label value": {Filter{Labels: []string{"tier=front", "x="}}, []string{"web-1"}},
		"no label":    {Filter{Labels: []string{"tier=x"}}, nil},
		"name":        {Filter{Name: "eb"}, []string{"web-1"}},
		"image":       {Filter{Image: "app"}, []string{"web-1", "db"}},
		"image id":    {Filter{Image: web.ImageID[7:19]}, []string{"web-1", "db"}},
		"other image": {Filter{Image: "ap"}, nil},
		"limit":       {Filter{Limit: 1}, []string{"db"}},
	} {
		t.Run(name, func(t *testing.T) {
			infos, err := m.List(tt.f)
			require.NoError(t, err)
			var names []string
			for _, i := range infos {
				names = append(names, i.Name)
			}
			require.Equal(t, tt.want, names)
		})
	}
	_, err := m.List(Filter{States: []State{"asleep"}})
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = m.List(Filter{Limit: -1})
	require.ErrorIs(t, err, errs.ErrInvalid)
}
