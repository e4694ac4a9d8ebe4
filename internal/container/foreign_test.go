package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// fakeOthers is a machine that somebody has, or not.
type fakeOthers struct {
	taken bool
	take  func() error
}

func (o *fakeOthers) Taken(string) bool                  { return o.taken }
func (o *fakeOthers) Take(context.Context, string) error { return o.take() }

func TestContainersOfAnotherProgram(t *testing.T) {
	dir := t.TempDir()
	m, h, _ := newFakeHost(t, dir)
	ctx := t.Context()
	web := started(t, m, Spec{Name: "web"})
	done := started(t, m, Spec{Name: "done"})
	h.machine().exit(done.ID, api.Exit{Code: 3})
	_, err := m.Wait(ctx, "done", WaitNotRunning)
	require.NoError(t, err)

	mine := false
	bus := &event.Bus{}
	defer bus.Close()
	host := &fakeHost{f: newMachine()}
	others := &fakeOthers{taken: true, take: func() error { return fmt.Errorf("%w by process 7", errs.ErrInUse) }}
	b, err := NewManager(Config{
		Images: fakeImages{}, Events: bus, Logger: slog.New(slog.DiscardHandler), Acquire: host.acquire, Dir: dir,
		Keeps: func(string) bool { return mine }, Others: others,
	})
	require.NoError(t, err)
	defer b.Close()
	host.f.mgr = b
	own, err := b.Create(ctx, Spec{Name: "own", Image: "app"})
	require.NoError(t, err)

	list, err := b.List(Filter{})
	require.NoError(t, err)
	require.Len(t, list, 3)
	for ref, want := range map[string]State{"web": StateRunning, web.ID[:20]: StateRunning, "done": StateExited, own.ID: StateCreated} {
		i, err := b.Inspect(ref)
		require.NoError(t, err)
		require.Equal(t, want, i.State)
	}
	list, err = b.List(Filter{States: []State{StateRunning}})
	require.NoError(t, err)
	require.Len(t, list, 1)
	for _, err := range []error{
		b.Stop(ctx, "web", "", nil), b.Remove(ctx, "web", true), b.Start(ctx, "done"), b.Rename(ctx, "web", "x"),
		b.Reach(ctx, "web", nil),
	} {
		require.ErrorIs(t, err, errs.ErrInUse)
		require.ErrorContains(t, err, "process 7")
	}
	require.ErrorIs(t, b.Start(ctx, "nobody"), errs.ErrNotFound)
	require.Equal(t, StateRunning, state(t, m, "web").State, "its owner does not notice")

	others.taken = false // as when the other program is killed
	i, err := b.Inspect("web")
	require.NoError(t, err)
	require.Equal(t, StateExited, i.State)
	require.Equal(t, "the program that ran it ended", i.Reason)
	others.take = func() error { mine = true; return b.LoadMachine(DefaultMachine) }
	require.NoError(t, b.Start(ctx, "web"))
	require.Equal(t, StateRunning, state(t, b, "web").State)
	others.take = func() error { return errors.New("asked for again") }
	require.NoError(t, b.Remove(ctx, "done", false))
	list, err = b.List(Filter{})
	require.NoError(t, err)
	require.Len(t, list, 2)
}
