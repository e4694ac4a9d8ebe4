package container

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// fakeExec answers the executions of a fakeMachine.
type fakeExec struct {
	mux api.Mux
	wg  sync.WaitGroup

	mu       sync.Mutex
	requests []api.ExecRequest
	err      error // of the execution
	code     int
	hang     bool // until the stream is closed
	killed   int  // how many were
}

func newExec(t *testing.T, f *fakeMachine) *fakeExec {
	x := &fakeExec{}
	api.Handle(&x.mux, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
		return api.PingReply{Version: api.Version}, nil
	})
	api.HandleStream(&x.mux, api.Exec, x.exec)
	api.Handle(&x.mux, api.ExecInspect, func(_ context.Context, r api.ExecInspectRequest) (api.ExecInspectReply, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, q := range x.requests {
			if q.ExecID == r.ExecID {
				return api.ExecInspectReply{ID: q.ID, PID: 9, Running: x.hang, Exit: api.Exit{Code: x.code}}, nil
			}
		}
		return api.ExecInspectReply{}, errs.ErrNotFound
	})
	f.streams = agent.New(func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		x.wg.Go(func() { x.mux.ServeConn(context.Background(), guest) })
		return host, nil
	})
	t.Cleanup(x.wg.Wait)
	return x
}

func (x *fakeExec) exec(ctx context.Context, r api.ExecRequest, s *api.Stream, accept func() error) error {
	x.mu.Lock()
	x.requests = append(x.requests, r)
	err, code, hang := x.err, x.code, x.hang
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if err := accept(); err != nil {
		return err
	}
	if hang {
		<-s.CloseRead(ctx).Done()
		x.mu.Lock()
		defer x.mu.Unlock()
		x.killed++
		return nil
	}
	if err := s.Send(api.FrameStdout, []byte(strings.Repeat("o", 3000))); err != nil {
		return err
	}
	if err := s.Send(api.FrameStderr, []byte(strings.Repeat("e", 3000))); err != nil {
		return err
	}
	return s.SendJSON(api.FrameExit, api.Exit{Code: code})
}

func (x *fakeExec) set(code int, hang bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.code, x.hang, x.err = code, hang, err
}

func (x *fakeExec) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.requests)
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, bus := newFake(t)
		x := newExec(t, f)
		events := bus.Subscribe(t.Context(), event.SubscribeOptions{Kinds: []event.Kind{event.ContainerHealth}})
		info := started(t, m, Spec{Health: &HealthCheck{
			Test: []string{"CMD-SHELL", "check"}, Interval: 10 * time.Second, Timeout: time.Second, Retries: 2,
		}})
		health := func(after time.Duration) *Health {
			time.Sleep(after)
			synctest.Wait()
			return state(t, m, info.ID).Health
		}
		require.Equal(t, &Health{Status: HealthStarting}, health(0))
		x.set(1, false, nil)
		h := health(10 * time.Second)
		require.Equal(t, HealthStarting, h.Status)
		require.Equal(t, 1, h.FailingStreak)
		require.Len(t, h.Log[0].Output, maxHealthOutput, "the output is cut")
		require.Equal(t, HealthUnhealthy, health(10*time.Second).Status)
		require.Equal(t, "unhealthy", (<-events).Attributes[event.AttrHealth])
		require.Equal(t, []string{"/bin/sh", "-c", "check"}, x.requests[0].Process.Args)

		x.set(0, false, nil)
		h = health(10 * time.Second)
		require.Equal(t, HealthHealthy, h.Status)
		require.Zero(t, h.FailingStreak)
		require.Equal(t, "healthy", (<-events).Attributes[event.AttrHealth])

		x.set(0, true, nil)
		h = health(11 * time.Second)
		require.Equal(t, 1, h.FailingStreak)
		require.Equal(t, -1, h.Log[3].ExitCode)
		require.Contains(t, h.Log[3].Output, "did not end within 1s")
		require.Equal(t, 1, x.killed)

		x.set(0, false, errs.ErrNoCommand)
		h = health(10 * time.Second)
		require.Equal(t, HealthUnhealthy, h.Status)
		require.Contains(t, h.Log[4].Output, "command not found")
		h = health(10 * time.Second)
		require.Len(t, h.Log, maxHealthLog)
		require.Equal(t, 1, h.Log[0].ExitCode, "the oldest is dropped")

		n := x.count()
		require.NoError(t, m.Pause(t.Context(), info.ID))
		require.Equal(t, h, health(time.Minute), "a paused container is not judged")
		require.Equal(t, n, x.count())
		require.NoError(t, m.Resume(t.Context(), info.ID))

		f.exit(info.ID, api.Exit{})
		n = x.count()
		health(time.Hour)
		require.Equal(t, n, x.count(), "nor one that has ended")
		require.NoError(t, m.Start(t.Context(), info.ID))
		require.Equal(t, &Health{Status: HealthStarting}, health(0))
	})
}

func TestStartPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		x := newExec(t, f)
		x.set(1, false, nil)
		info := started(t, m, Spec{Health: &HealthCheck{
			Test: []string{"CMD", "check"}, Interval: time.Minute, StartPeriod: 10 * time.Second, StartInterval: time.Second, Retries: 1,
		}})
		time.Sleep(9500 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 9, x.count())
		require.Equal(t, HealthStarting, state(t, m, info.ID).Health.Status, "failures do not count yet")
		x.set(0, false, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, HealthHealthy, state(t, m, info.ID).Health.Status)
		x.set(1, false, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 11, x.count(), "the start is over with the first success")
		require.Equal(t, HealthUnhealthy, state(t, m, info.ID).Health.Status)
	})
}

func TestHealthEndsWithTheManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		x := newExec(t, f)
		x.set(0, true, nil)
		started(t, m, Spec{Health: &HealthCheck{Test: []string{"CMD", "check"}, Interval: time.Second, Timeout: time.Hour}})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, x.count())
		m.Close()
		synctest.Wait()
		require.Equal(t, 1, x.killed)
	})
}

func TestExecJoinsWhatTheContainerHas(t *testing.T) {
	m, f, bus := newFake(t)
	x := newExec(t, f)
	ctx := t.Context()
	events := bus.Subscribe(ctx, event.SubscribeOptions{Kinds: []event.Kind{event.ExecStarted}})
	info := started(t, m, Spec{
		Env: []string{"A=1", "B=2"}, WorkingDir: "/w", User: "app", Groups: []string{"g"}, CapDrop: []string{"ALL"}, NoNewPrivileges: true,
		Ulimits: []Ulimit{{"core", 0, 0}},
	})
	p, err := m.Exec(ctx, info.ID, ExecSpec{Args: []string{"ls"}, Env: []string{"B", "C=3"}}, nil, nil)
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Equal(t, api.Process{
		Args: []string{"ls"}, Env: []string{defaultPath, "A=1", "C=3"}, Cwd: "/w", User: "app", Groups: []string{"g"},
		Capabilities: []string{}, NoNewPrivileges: true, Rlimits: []api.Rlimit{{Type: "RLIMIT_CORE"}},
	}, x.requests[0].Process)
	require.Equal(t, p.ID(), (<-events).Attributes[event.AttrExecID])

	x.set(0, true, nil)
	p, err = m.Exec(ctx, info.ID, ExecSpec{
		Args: []string{"sh"}, WorkingDir: "/", User: "root", TTY: true, Rows: 3, Cols: 4, Privileged: true,
	}, nil, nil)
	require.NoError(t, err)
	defer p.Close()
	got := x.requests[1].Process
	require.Equal(t, []string{defaultPath, "A=1", "B=2", "TERM=xterm"}, got.Env)
	require.Equal(t, api.Size{Rows: 3, Cols: 4}, got.Size)
	require.Len(t, got.Capabilities, 41)
	require.Nil(t, got.Groups)
	require.Equal(t, []string{"A=1", "B=2"}, state(t, m, info.ID).Env[1:], "that of the container is untouched")

	i, err := m.InspectExec(ctx, p.ID()[:20])
	require.NoError(t, err)
	require.Equal(t, ExecInfo{ID: p.ID(), Container: info.ID, Running: true, PID: 9, Spec: p.x.spec}, i)
	f.crash(errors.New("gone"))
	i, err = m.InspectExec(ctx, p.ID())
	require.NoError(t, err)
	require.False(t, i.Running)
	require.Equal(t, unknownExitCode, i.Exit.Code)
	_, err = m.Exec(ctx, info.ID, ExecSpec{Args: []string{"x"}}, nil, nil)
	require.ErrorIs(t, err, errs.ErrConflict)
	for _, bad := range []ExecSpec{{}, {Args: []string{""}}, {Args: []string{"x"}, Env: []string{"=1"}}, {Args: []string{"x"}, WorkingDir: "rel"}} {
		_, err = m.Exec(ctx, info.ID, bad, nil, nil)
		require.ErrorIs(t, err, errs.ErrInvalid)
	}
	for _, bad := range []string{"", "zz"} {
		_, err = m.InspectExec(ctx, bad)
		require.ErrorIs(t, err, errs.ErrNotFound)
	}
}
