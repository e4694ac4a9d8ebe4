package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/internal/share"
)

// fakeImages knows one image.
type fakeImages struct{}

func (fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	if ref != "app" && ref != digest.FromString("app").String() {
		return image.Image{}, fmt.Errorf("image %q %w", ref, errs.ErrNotFound)
	}
	return image.Image{ID: digest.FromString("app"), Config: ocispec.ImageConfig{Cmd: []string{"run"}, Labels: map[string]string{"a": "1"}}}, nil
}

func (fakeImages) Layers(context.Context, image.Image) ([]image.LayerDisk, error) {
	return []image.LayerDisk{{Serial: "l1"}}, nil
}

func (f fakeImages) Use(ctx context.Context, ref string, _ image.User) (image.Image, error) {
	return f.Get(ctx, ref)
}

func (fakeImages) Renew(image.User) {}

func (fakeImages) Run(context.Context, image.User) error { return nil }

func (fakeImages) Unuse(string) {}

func (fakeImages) Restore(context.Context, func(string) bool, []image.User) error { return nil }

// fakeMachine is a guest that keeps the rules of the agent: it knows what exists and what runs.
type fakeMachine struct {
	mgr        *Manager
	done       chan struct{}
	persistent bool
	streams    *agent.Client // answers exec and logs

	mu       sync.Mutex
	running  map[string]bool // by id; false is created or exited
	started  map[string]bool
	paused   map[string]bool
	kept     map[string]bool // removed with Keep
	requests map[string]api.CreateRequest
	ignores  []string // signals that do not end a process
	signals  []string // that came
	updates  []api.Resources
	startErr error
	early    bool          // a process ends before the reply of its start
	removing chan struct{} // not nil: a removal waits until it is closed
	err      error
	holds    int
	starts   int
}

func newMachine() *fakeMachine {
	return &fakeMachine{
		done: make(chan struct{}), running: map[string]bool{}, started: map[string]bool{}, paused: map[string]bool{}, kept: map[string]bool{},
		requests: map[string]api.CreateRequest{},
	}
}

// fakeHost gives a manager its machine: a new one where the last has ended.
type fakeHost struct {
	mu  sync.Mutex
	f   *fakeMachine
	err error // of the start of a machine
}

func (h *fakeHost) acquire(context.Context, string) (Machine, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, nil, h.err
	}
	if isDone(h.f.done) {
		mgr := h.f.mgr
		h.f = newMachine()
		h.f.mgr = mgr
	}
	f := h.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds++
	return f, func() { f.mu.Lock(); f.holds--; f.mu.Unlock() }, nil
}

func (h *fakeHost) machine() *fakeMachine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.f
}

func newFakeHost(t *testing.T, dir string) (*Manager, *fakeHost, *event.Bus) {
	t.Helper()
	bus := &event.Bus{}
	h := &fakeHost{f: newMachine()}
	m, err := NewManager(Config{
		Images: fakeImages{}, Events: bus, Logger: slog.New(slog.DiscardHandler), Acquire: h.acquire, Dir: dir,
		Current: func(context.Context, string) (Machine, error) {
			if f := h.machine(); !isDone(f.done) {
				return f, nil
			}
			return nil, nil
		},
	})
	require.NoError(t, err)
	h.f.mgr = m
	t.Cleanup(func() { m.Close(); bus.Close() })
	return m, h, bus
}

func newFake(t *testing.T) (*Manager, *fakeMachine, *event.Bus) {
	t.Helper()
	m, h, bus := newFakeHost(t, "")
	return m, h.f, bus
}

func (f *fakeMachine) Name() string          { return "fake" }
func (f *fakeMachine) Agent() Agent          { return f }
func (f *fakeMachine) Done() <-chan struct{} { return f.done }
func (f *fakeMachine) Err() error            { return f.err }
func (f *fakeMachine) Persistent() bool      { return f.persistent }
func (f *fakeMachine) Share(context.Context, share.Source) (string, func(), error) {
	return "", nil, errs.ErrUnsupported
}
func (f *fakeMachine) Offer(context.Context, func(context.Context) (net.Conn, error)) (string, func(), error) {
	return "", nil, errs.ErrUnsupported
}
func (f *fakeMachine) AttachLayers(_ context.Context, d []image.LayerDisk) ([]api.Layer, error) {
	return []api.Layer{{Serial: d[0].Serial}}, nil
}

func (f *fakeMachine) Create(_ context.Context, r api.CreateRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.running[r.ID]; ok {
		return errs.ErrExists
	}
	f.running[r.ID], f.requests[r.ID] = false, r
	delete(f.started, r.ID)
	return nil
}

func (f *fakeMachine) Start(_ context.Context, r api.StartRequest) (api.StartReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.running[r.ID]
	switch {
	case f.startErr != nil:
		return api.StartReply{}, f.startErr
	case !ok:
		return api.StartReply{}, errs.ErrNotFound
	case f.started[r.ID]:
		return api.StartReply{}, errs.ErrConflict
	}
	f.running[r.ID], f.started[r.ID] = true, true
	f.starts++
	if f.early {
		f.running[r.ID] = false
		f.mgr.HandleEvent(api.Event{Kind: api.EventExit, ID: r.ID, Exit: api.Exit{Code: 4}})
	}
	return api.StartReply{PID: 7}, nil
}

func (f *fakeMachine) Wait(context.Context, api.WaitRequest) (api.WaitReply, error) {
	return api.WaitReply{Exit: api.Exit{Code: 9}}, nil
}

func (f *fakeMachine) Pause(_ context.Context, r api.PauseRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running[r.ID] || f.paused[r.ID] != r.Resume {
		return errs.ErrConflict
	}
	f.paused[r.ID] = !r.Resume
	return nil
}

func (f *fakeMachine) SetNetwork(context.Context, api.SetNetworkRequest) error { return nil }

func (f *fakeMachine) Update(_ context.Context, r api.UpdateRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updates = append(f.updates, r.Resources)
	return nil
}

func (f *fakeMachine) Attach(context.Context, api.AttachRequest, io.Writer, io.Writer) (*agent.Process, error) {
	return nil, errs.ErrUnsupported
}

func (f *fakeMachine) Exec(ctx context.Context, r api.ExecRequest, stdout, stderr io.Writer) (*agent.Process, error) {
	if f.streams == nil {
		return nil, errs.ErrUnsupported
	}
	return f.streams.Exec(ctx, r, stdout, stderr)
}

func (f *fakeMachine) ExecInspect(ctx context.Context, r api.ExecInspectRequest) (api.ExecInspectReply, error) {
	return f.streams.ExecInspect(ctx, r)
}

func (f *fakeMachine) Logs(context.Context, api.LogsRequest) (*agent.Logs, error) {
	return nil, errs.ErrUnsupported
}

func (f *fakeMachine) DialContainer(context.Context, api.DialRequest) (net.Conn, error) {
	return nil, errs.ErrUnsupported
}

func (f *fakeMachine) Stats(_ context.Context, r api.StatsRequest) (api.StatsReply, error) {
	return api.StatsReply{PIDs: 1}, nil
}

func (f *fakeMachine) Top(_ context.Context, r api.TopRequest) (api.TopReply, error) {
	return api.TopReply{Processes: []api.ProcessInfo{{PID: 1}}}, nil
}

func (f *fakeMachine) Kill(_ context.Context, r api.KillRequest) error {
	f.mu.Lock()
	f.signals = append(f.signals, r.Signal)
	ignored := slices.Contains(f.ignores, r.Signal)
	f.mu.Unlock()
	if !ignored {
		f.exit(r.ID, api.Exit{Code: 137, Signal: "KILL"})
	}
	return nil
}

func (f *fakeMachine) Remove(ctx context.Context, r api.RemoveRequest) error {
	f.mu.Lock()
	wait := f.removing
	f.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	was, ok := f.running[r.ID]
	if !ok {
		defer f.mu.Unlock()
		return errs.ErrNotFound
	}
	if was && !r.Force {
		defer f.mu.Unlock()
		return errs.ErrConflict
	}
	delete(f.running, r.ID)
	f.kept[r.ID] = r.Keep
	f.mu.Unlock()
	if was {
		f.mgr.HandleEvent(api.Event{Kind: api.EventExit, ID: r.ID, Exit: api.Exit{Code: 137, Signal: "KILL"}})
	}
	return nil
}

func (f *fakeMachine) exit(id string, e api.Exit) {
	f.mu.Lock()
	was := f.running[id]
	if _, ok := f.running[id]; ok {
		f.running[id] = false
	}
	delete(f.paused, id)
	f.mu.Unlock()
	if was {
		f.mgr.HandleEvent(api.Event{Kind: api.EventExit, ID: id, Exit: e})
	}
}

// crash ends the machine as its owner reports it.
func (f *fakeMachine) crash(err error) {
	f.err = err
	close(f.done)
	f.mgr.HandleEnd(f)
}

func TestLifeOfAContainer(t *testing.T) {
	m, f, bus := newFake(t)
	ctx := t.Context()
	events := bus.Subscribe(ctx, event.SubscribeOptions{})
	info, err := m.Create(ctx, Spec{Name: "web", Image: "app", Labels: map[string]string{"b": "2"}})
	require.NoError(t, err)
	require.Equal(t, StateCreated, info.State)
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, info.Labels)
	require.Equal(t, []string{"run"}, info.Args)
	require.Equal(t, "TERM", info.StopSignal)
	require.Equal(t, 1, f.holds)

	require.ErrorIs(t, m.Kill(ctx, "web", "TERM"), errs.ErrConflict)
	require.NoError(t, m.Start(ctx, "web"))
	require.ErrorIs(t, m.Start(ctx, "web"), errs.ErrConflict)
	require.ErrorContains(t, m.Start(ctx, "web"), "running")
	require.ErrorIs(t, m.Remove(ctx, "web", false), errs.ErrConflict)
	f.exit(info.ID, api.Exit{Code: 3})
	for range 2 { // a late waiter gets the same
		exit, err := m.Wait(ctx, info.ID[:8], WaitNotRunning)
		require.NoError(t, err)
		require.Equal(t, api.Exit{Code: 3}, exit)
	}
	require.NoError(t, m.Remove(ctx, "web", false))
	require.Zero(t, f.holds, "the machine is given back")
	_, err = m.Inspect("web")
	require.ErrorIs(t, err, errs.ErrNotFound)
	for _, want := range []event.Kind{event.ContainerCreated, event.ContainerStarted, event.ContainerExited, event.ContainerRemoved} {
		e := <-events
		require.Equal(t, want, e.Kind)
		require.Equal(t, "web", e.Name)
	}
}

// TestDiscardGoesOn has a guest that takes longer to remove a container than the caller waits.
func TestDiscardGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		info := started(t, m, Spec{})
		f.removing = make(chan struct{})
		began := time.Now()
		m.Discard(info.ID)
		require.Equal(t, undoTimeout, time.Since(began))
		_, err := m.Inspect(info.ID)
		require.NoError(t, err)
		close(f.removing)
		synctest.Wait()
		_, err = m.Inspect(info.ID)
		require.ErrorIs(t, err, errs.ErrNotFound)
		require.Empty(t, f.running)
		m.Discard(info.ID)
	})
}

func TestNamesAreUniqueAndFreedAgain(t *testing.T) {
	m, f, _ := newFake(t)
	ctx := t.Context()
	_, err := m.Create(ctx, Spec{Name: "a", Image: "app"})
	require.NoError(t, err)
	_, err = m.Create(ctx, Spec{Name: "a", Image: "app"})
	require.ErrorIs(t, err, errs.ErrExists)
	_, err = m.Create(ctx, Spec{Name: "b", Image: "nope"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = m.Create(ctx, Spec{Name: "b", Image: "app"})
	require.NoError(t, err, "a failed create does not keep the name")
	require.NoError(t, m.Remove(ctx, "a", false))
	_, err = m.Create(ctx, Spec{Name: "a", Image: "app"})
	require.NoError(t, err)
	require.Equal(t, 2, f.holds)
}

func TestAmbiguousPrefixListsTheCandidates(t *testing.T) {
	m, _, _ := newFake(t)
	var ids []string
	for range 17 { // two of them begin alike
		info, err := m.Create(t.Context(), Spec{Image: "app"})
		require.NoError(t, err)
		ids = append(ids, info.ID)
	}
	seen := map[byte]string{}
	for _, id := range ids {
		other, twice := seen[id[0]]
		seen[id[0]] = id
		if !twice {
			continue
		}
		_, err := m.Inspect(id[:1])
		require.ErrorIs(t, err, errs.ErrInvalid)
		require.ErrorContains(t, err, id[:12])
		require.ErrorContains(t, err, other[:12])
		return
	}
	t.Fatal("17 ids with 16 first digits")
}

func TestCommandThatCannotRunHasExited(t *testing.T) {
	for err, code := range map[error]int{errs.ErrNoCommand: 127, errs.ErrNoExecutable: 126} {
		m, f, _ := newFake(t)
		f.startErr = fmt.Errorf("exec: %w", err)
		info, cerr := m.Create(t.Context(), Spec{Image: "app"})
		require.NoError(t, cerr)
		require.ErrorIs(t, m.Start(t.Context(), info.ID), err)
		exit, werr := m.Wait(t.Context(), info.ID, WaitNotRunning)
		require.NoError(t, werr)
		require.Equal(t, code, exit.Code)
	}
}

func TestMachineCrashEndsItsContainers(t *testing.T) {
	m, f, _ := newFake(t)
	info, err := m.Create(t.Context(), Spec{Image: "app"})
	require.NoError(t, err)
	require.NoError(t, m.Start(t.Context(), info.ID))
	f.crash(errors.New("guest panicked"))
	_, err = m.Wait(t.Context(), info.ID, WaitNotRunning)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "guest panicked")
	require.Zero(t, f.holds)
	require.NoError(t, m.Remove(t.Context(), info.ID, false), "the record can still be removed")
}

func TestAutoRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f, _ := newFake(t)
		info, err := m.Create(t.Context(), Spec{Image: "app", AutoRemove: true})
		require.NoError(t, err)
		require.NoError(t, m.Start(t.Context(), info.ID))
		f.exit(info.ID, api.Exit{})
		synctest.Wait()
		_, err = m.Inspect(info.ID)
		require.ErrorIs(t, err, errs.ErrNotFound)
		require.Zero(t, f.holds)
	})
}

func TestCloseEndsWaitersAndRefusesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := newFake(t)
		info, err := m.Create(t.Context(), Spec{Image: "app"})
		require.NoError(t, err)
		require.NoError(t, m.Start(t.Context(), info.ID))
		result := make(chan error)
		go func() {
			_, err := m.Wait(context.Background(), info.ID, WaitNotRunning)
			result <- err
		}()
		synctest.Wait()
		m.Close()
		require.Error(t, <-result)
		_, err = m.List(Filter{})
		require.ErrorIs(t, err, errs.ErrClosed)
		_, err = m.Create(t.Context(), Spec{Image: "app"})
		require.ErrorIs(t, err, errs.ErrClosed)
	})
}

// TestRandomOperations compares the manager with a model that only knows the states.
func TestRandomOperations(t *testing.T) {
	for seed := range uint64(60) {
		m, f, _ := newFake(t)
		f.persistent = seed%2 == 0
		rnd := rand.New(rand.NewPCG(seed, 1))
		ctx := t.Context()
		model := map[string]State{}
		var ids []string
		for range 300 {
			if len(ids) == 0 || rnd.IntN(8) == 0 {
				info, err := m.Create(ctx, Spec{Image: "app"})
				require.NoError(t, err)
				ids, model[info.ID] = append(ids, info.ID), StateCreated
				continue
			}
			id := ids[rnd.IntN(len(ids))]
			was, exists := model[id]
			live := was == StateRunning || was == StatePaused
			next, op := was, rnd.IntN(9)
			var err error
			ok := exists
			switch op {
			case 0:
				err = m.Start(ctx, id)
				ok, next = ok && !live, StateRunning
			case 1:
				err = m.Kill(ctx, id, "")
				ok, next = live, StateExited
			case 2:
				f.exit(id, api.Exit{Code: 1})
				ok = true
				if live {
					next = StateExited
				}
			case 3, 4:
				err = m.Remove(ctx, id, op == 4)
				ok, next = ok && (op == 4 || !live), ""
			case 5:
				err = m.Stop(ctx, id, "", nil)
				if live {
					next = StateExited
				}
			case 6:
				err = m.Pause(ctx, id)
				ok, next = was == StateRunning, StatePaused
			case 7:
				err = m.Resume(ctx, id)
				ok, next = was == StatePaused, StateRunning
			case 8:
				err = m.Restart(ctx, id, "", nil)
				next = StateRunning
			}
			require.Equal(t, ok, err == nil, "seed %d: %d of %q: %v", seed, op, was, err)
			switch {
			case err != nil && exists:
				require.ErrorIs(t, err, errs.ErrConflict)
				require.ErrorContains(t, err, string(was), "the error names the state")
			case err != nil:
				require.ErrorIs(t, err, errs.ErrNotFound)
			case next == "":
				delete(model, id)
			case exists:
				model[id] = next
			}
		}
		infos, err := m.List(Filter{})
		require.NoError(t, err)
		got := map[string]State{}
		holds := 0
		for _, i := range infos {
			got[i.ID] = i.State
			if !f.persistent || i.State != StateExited {
				holds++
			}
		}
		require.Equal(t, model, got, "seed %d", seed)
		require.Equal(t, holds, f.holds, "the machine is held by what needs it")
	}
}

// TestHammer runs everything against everything; the race detector and the end of the test are its assertions.
func TestHammer(t *testing.T) {
	m, f, _ := newFake(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				info, err := m.Create(ctx, Spec{Image: "app", Name: fmt.Sprintf("n%d-%d", w, i), AutoRemove: i%3 == 0})
				if err != nil {
					t.Error(err)
					return
				}
				wg.Go(func() { _ = m.Start(ctx, info.ID); f.exit(info.ID, api.Exit{}) })
				wg.Go(func() { _ = m.Kill(ctx, info.Name, ""); _, _ = m.List(Filter{}) })
				wg.Go(func() { _ = m.Remove(ctx, info.ID[:20], true) })
				wg.Go(func() { _, _ = m.Inspect(info.ID) })
			}
		})
	}
	wg.Wait()
	infos, err := m.List(Filter{})
	require.NoError(t, err)
	for _, i := range infos {
		if err := m.Remove(ctx, i.ID, true); err != nil {
			require.ErrorIs(t, err, errs.ErrNotFound)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Zero(t, f.holds)
}
