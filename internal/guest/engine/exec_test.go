package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// commands are what processes of the tests do.
func commands() map[string]agenttest.Command {
	return map[string]agenttest.Command{
		"wait": func(ctx context.Context, p *agenttest.Process) int {
			select {
			case n := <-p.Signals:
				return n
			case <-ctx.Done():
				return 0
			}
		},
		"cat": func(_ context.Context, p *agenttest.Process) int {
			_, _ = io.Copy(p.Stdout, p.Stdin)
			return 4
		},
		"talk": func(_ context.Context, p *agenttest.Process) int {
			fmt.Fprint(p.Stdout, "one\ntwo\n")
			fmt.Fprint(p.Stderr, "bad\n")
			fmt.Fprint(p.Stdout, "three")
			return 0
		},
		"size": func(_ context.Context, p *agenttest.Process) int { return int((<-p.Sizes).Rows) },
	}
}

// use returns an agent with a running container c.
func use(t *testing.T, command string) *agent.Client {
	a := agenttest.New(commands())
	t.Cleanup(a.Close)
	c := agent.New(a.Dial)
	require.NoError(t, c.Create(t.Context(), api.CreateRequest{ID: "c", Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{command}}}))
	_, err := c.Start(t.Context(), api.StartRequest{ID: "c"})
	require.NoError(t, err)
	return c
}

func execOf(id string, args ...string) api.ExecRequest {
	return api.ExecRequest{ID: "c", ExecID: id, Process: api.Process{Args: args}}
}

func TestExec(t *testing.T) {
	c := use(t, "wait")
	ctx := t.Context()
	var out bytes.Buffer
	req := execOf("x1", "cat")
	req.Process.Stdin = true
	p, err := c.Exec(ctx, req, &out, nil)
	require.NoError(t, err)
	rep, err := c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x1"})
	require.NoError(t, err)
	require.True(t, rep.Running)
	require.Equal(t, "c", rep.ID)
	_, err = c.Exec(ctx, req, nil, nil)
	require.ErrorIs(t, err, errs.ErrExists)
	io.WriteString(p.Stdin(), "hello")
	p.Stdin().Close()
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 4}, exit)
	require.Equal(t, "hello", out.String())
	rep, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x1", Wait: true, Size: api.Size{Rows: 1}})
	require.NoError(t, err)
	require.Equal(t, api.ExecInspectReply{ID: "c", PID: rep.PID, Exit: exit}, rep)
	_, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x1", Signal: "TERM"})
	require.ErrorIs(t, err, errs.ErrConflict)

	out.Reset()
	p, err = c.Exec(ctx, execOf("x2", "talk"), &out, nil)
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\nthree", out.String(), "from the first byte on")
}

func TestExecErrors(t *testing.T) {
	c := use(t, "wait")
	ctx := t.Context()
	for name, tc := range map[string]struct {
		req  api.ExecRequest
		want error
	}{
		"no container": {api.ExecRequest{ID: "d", ExecID: "x", Process: api.Process{Args: []string{"cat"}}}, errs.ErrNotFound},
		"bad id":       {execOf("", "cat"), errs.ErrInvalid},
		"no command":   {execOf("x"), errs.ErrInvalid},
		"unknown":      {execOf("x", "nope"), errs.ErrNoCommand},
	} {
		_, err := c.Exec(ctx, tc.req, nil, nil)
		require.ErrorIs(t, err, tc.want, name)
	}
	_, err := c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x"})
	require.ErrorIs(t, err, errs.ErrNotFound, "a failed start leaves nothing")
	p, err := c.Exec(ctx, execOf("x", "wait"), nil, nil)
	require.NoError(t, err)
	_, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x", Signal: "NOPE"})
	require.ErrorIs(t, err, errs.ErrInvalid)
	require.NoError(t, c.Kill(ctx, api.KillRequest{ID: "c", Signal: "TERM"}))
	exit, err := p.Wait(ctx) // with its container
	require.NoError(t, err)
	require.Equal(t, "KILL", exit.Signal)
	_, err = c.Wait(ctx, api.WaitRequest{ID: "c"})
	require.NoError(t, err)
	_, err = c.Exec(ctx, execOf("y", "wait"), nil, nil)
	require.ErrorIs(t, err, errs.ErrConflict)
	require.ErrorContains(t, err, "exited")
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}))
	_, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x"})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestDetachAndDrop(t *testing.T) {
	c := use(t, "wait")
	ctx := t.Context()
	req := execOf("detached", "wait")
	req.Detach, req.Process.Stdin = true, true
	p, err := c.Exec(ctx, req, nil, nil)
	require.NoError(t, err)
	p.Close()
	p, err = c.Exec(ctx, execOf("dropped", "wait"), nil, nil)
	require.NoError(t, err)
	p.Close()
	rep, err := c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "dropped", Wait: true})
	require.NoError(t, err)
	require.Equal(t, "KILL", rep.Exit.Signal)
	rep, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "detached"})
	require.NoError(t, err)
	require.True(t, rep.Running)
	rep, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "detached", Signal: "TERM", Wait: true})
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 15}, rep.Exit)

	req = execOf("tty", "size")
	req.Process.TTY = true
	p, err = c.Exec(ctx, req, nil, nil)
	require.NoError(t, err)
	_, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "tty", Size: api.Size{Rows: 33, Cols: 1}})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 33, exit.Code)
}

// TestExecInTheMachine executes without a container. Powering off ends it, and lets no more begin.
func TestExecInTheMachine(t *testing.T) {
	a := agenttest.New(commands())
	c := agent.New(a.Dial)
	ctx := t.Context()
	in := func(id, command string) api.ExecRequest {
		return api.ExecRequest{ExecID: id, Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{command}}}
	}
	var out bytes.Buffer
	p, err := c.Exec(ctx, in("x1", "talk"), &out, io.Discard)
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit)
	require.Equal(t, "one\ntwo\nthree", out.String())
	bare := in("x2", "talk")
	bare.Layers = nil
	_, err = c.Exec(ctx, bare, nil, nil)
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = c.Exec(ctx, in("x2", "nope"), nil, nil)
	require.ErrorIs(t, err, errs.ErrNoCommand)

	p, err = c.Exec(ctx, in("x3", "wait"), nil, nil)
	require.NoError(t, err)
	rep, err := c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x3"})
	require.NoError(t, err)
	require.True(t, rep.Running)
	require.Empty(t, rep.ID)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		a.Close()
	}()
	_, _ = p.Wait(ctx) // its exit, or the end of the connection
	<-closed
}

func TestOldExecsAreForgotten(t *testing.T) {
	c := use(t, "wait")
	ctx := t.Context()
	for i := range 1030 {
		p, err := c.Exec(ctx, execOf(fmt.Sprint("x", i), "talk"), nil, nil)
		require.NoError(t, err)
		_, err = p.Wait(ctx)
		require.NoError(t, err)
	}
	_, err := c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x5"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: "x6"})
	require.NoError(t, err)
}

// TestExecHammer execs, drops, signals, and removes the container under it: nothing hangs, nothing is left.
func TestExecHammer(t *testing.T) {
	a := agenttest.New(commands())
	c := agent.New(a.Dial)
	ctx := t.Context()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(g)))
			for i := range 60 {
				id := fmt.Sprint("x", rng.IntN(20))
				switch rng.IntN(6) {
				case 0:
					_ = c.Create(ctx, api.CreateRequest{ID: "c", Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{"wait"}}})
					_, _ = c.Start(ctx, api.StartRequest{ID: "c"})
				case 1:
					if i%10 == 0 {
						_ = c.Remove(ctx, api.RemoveRequest{ID: "c", Force: true})
					}
				case 2:
					_, _ = c.ExecInspect(ctx, api.ExecInspectRequest{ExecID: id, Signal: "TERM"})
				default:
					xctx, cancel := context.WithCancel(ctx)
					if rng.IntN(4) == 0 {
						cancel()
					}
					req := execOf(id, []string{"wait", "talk", "nope"}[rng.IntN(3)])
					if p, err := c.Exec(xctx, req, nil, nil); err == nil {
						p.Close()
					}
					cancel()
				}
			}
		})
	}
	wg.Wait()
	a.Close()
}

// readLog returns the lines of a log.
func readLog(t *testing.T, c *agent.Client, req api.LogsRequest) (lines []string) {
	t.Helper()
	l, err := c.Logs(t.Context(), req)
	require.NoError(t, err)
	defer l.Close()
	for {
		rec, err := l.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		require.NoError(t, err)
		require.False(t, rec.At.IsZero())
		lines = append(lines, fmt.Sprintf("%v %s", rec.Stderr, rec.Line))
	}
}

func TestLogs(t *testing.T) {
	c := use(t, "talk")
	ctx := t.Context()
	follow := readLog(t, c, api.LogsRequest{ID: "c", Stdout: true, Follow: true}) // ends with the container
	require.Equal(t, []string{"false one\n", "false two\n", "false three"}, follow)
	require.Equal(t, []string{"true bad\n"}, readLog(t, c, api.LogsRequest{ID: "c", Stderr: true}))
	require.Equal(t, []string{"false two\n", "false three"}, readLog(t, c, api.LogsRequest{ID: "c", Stdout: true, Tail: 2}))
	_, err := c.Logs(ctx, api.LogsRequest{ID: "c"})
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = c.Logs(ctx, api.LogsRequest{ID: "../c", Stdout: true})
	require.ErrorIs(t, err, errs.ErrInvalid)
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}))
	_, err = c.Logs(ctx, api.LogsRequest{ID: "c", Stdout: true})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

// A log outlives its container where what it wrote is kept, and the next one of the same ID goes on with it.
func TestLogsOfWhatIsKept(t *testing.T) {
	c := use(t, "talk")
	ctx := t.Context()
	_, err := c.Wait(ctx, api.WaitRequest{ID: "c"})
	require.NoError(t, err)
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c", Keep: true}))
	once := []string{"false one\n", "false two\n", "false three"}
	require.Equal(t, once, readLog(t, c, api.LogsRequest{ID: "c", Stdout: true, Follow: true}), "nobody writes any more")
	require.NoError(t, c.Create(ctx, api.CreateRequest{ID: "c", Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{"talk"}}}))
	_, err = c.Start(ctx, api.StartRequest{ID: "c"})
	require.NoError(t, err)
	require.Equal(t, append(once, once...), readLog(t, c, api.LogsRequest{ID: "c", Stdout: true, Follow: true}))
	require.NoError(t, c.Remove(ctx, api.RemoveRequest{ID: "c"}))
	_, err = c.Logs(ctx, api.LogsRequest{ID: "c", Stdout: true})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestDroppedFollowerLeavesNothing(t *testing.T) {
	c := use(t, "wait")
	l, err := c.Logs(t.Context(), api.LogsRequest{ID: "c", Stdout: true, Follow: true})
	require.NoError(t, err)
	l.Close()
}

func TestStatsAndTop(t *testing.T) {
	c := use(t, "wait")
	ctx := t.Context()
	p, err := c.Exec(ctx, execOf("x", "wait"), nil, nil)
	require.NoError(t, err)
	st, err := c.Stats(ctx, api.StatsRequest{ID: "c"})
	require.NoError(t, err)
	require.EqualValues(t, 2, st.PIDs)
	top, err := c.Top(ctx, api.TopRequest{ID: "c"})
	require.NoError(t, err)
	require.Len(t, top.Processes, 2)
	_, err = c.Stats(ctx, api.StatsRequest{ID: "d"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.NoError(t, c.Kill(ctx, api.KillRequest{ID: "c", Signal: "KILL"}))
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	_, err = c.Wait(ctx, api.WaitRequest{ID: "c"})
	require.NoError(t, err)
	_, err = c.Top(ctx, api.TopRequest{ID: "c"})
	require.ErrorIs(t, err, errs.ErrConflict)
	_, err = c.Stats(ctx, api.StatsRequest{ID: "c"})
	require.ErrorIs(t, err, errs.ErrConflict)
}

func TestCheckExec(t *testing.T) {
	for name, change := range map[string]func(*api.ExecRequest){
		"id":       func(r *api.ExecRequest) { r.ExecID = "a/b" },
		"long id":  func(r *api.ExecRequest) { r.ExecID = strings.Repeat("x", 129) },
		"no args":  func(r *api.ExecRequest) { r.Process.Args = nil },
		"cwd":      func(r *api.ExecRequest) { r.Process.Cwd = "x" },
		"variable": func(r *api.ExecRequest) { r.Process.Env = []string{"x"} },
	} {
		req := execOf("x", "cat")
		require.NoError(t, engine.CheckExec(req))
		change(&req)
		require.ErrorIs(t, engine.CheckExec(req), errs.ErrInvalid, name)
	}
}
