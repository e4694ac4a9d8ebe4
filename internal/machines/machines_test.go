package machines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/machine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a machine that does what a test says.
type fake struct {
	spec Spec
	done chan struct{}
	once sync.Once

	mu     sync.Mutex
	err    error
	paused bool
	disk   bool  // it was used
	bad    error // of the disk
}

func (f *fake) Done() <-chan struct{} { return f.done }

func (f *fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fake) end(err error) {
	f.once.Do(func() {
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
		close(f.done)
	})
}

func (f *fake) Shutdown(context.Context) error { f.end(nil); return nil }
func (f *fake) Pause(context.Context) error    { return f.set(true) }
func (f *fake) Resume(context.Context) error   { return f.set(false) }

func (f *fake) UseDisk(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disk = f.disk || f.bad == nil
	return f.bad
}

func (f *fake) usesDisk() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.disk
}

func (f *fake) set(paused bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = paused
	return nil
}

// host starts fakes.
type host struct {
	mu     sync.Mutex
	starts map[string]int
	err    error
	bad    error         // of the disks
	wait   chan struct{} // nil does not wait
	wanted []bool        // what each start was told at its end
}

func (h *host) start(ctx context.Context, s Spec, _ *machine.Dir, wanted func() bool) (*fake, error) {
	h.mu.Lock()
	h.starts[s.Name]++
	err, bad, wait := h.err, h.bad, h.wait
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.wanted = append(h.wanted, wanted())
	}()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return &fake{spec: s, done: make(chan struct{}), bad: bad}, nil
}

func (h *host) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.starts[name]
}

func newManager(t *testing.T, dir string, change ...func(*Config[*fake])) (*Manager[*fake], *host, *event.Bus) {
	t.Helper()
	h, bus := &host{starts: map[string]int{}}, &event.Bus{}
	cfg := Config[*fake]{
		Dir: dir, Default: Spec{Name: "default", CPUs: 2, Memory: 512 << 20, Disk: 1 << 30}, Start: h.start,
		Events: bus, Logger: slog.New(slog.DiscardHandler), IdleTimeout: time.Minute,
		Recovery: lifecycle.RecoveryPolicy{MaxRetries: 3, Backoff: time.Second},
	}
	for _, c := range change {
		c(&cfg)
	}
	m, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()); bus.Close() })
	return m, h, bus
}

func state(t *testing.T, m *Manager[*fake], name string) lifecycle.State {
	t.Helper()
	i, err := m.Inspect(name)
	require.NoError(t, err)
	return i.State
}

func TestMachinesSurviveTheProgram(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	m, _, _ := newManager(t, dir)
	_, err := m.Create(Spec{Name: "db", CPUs: 1, Labels: map[string]string{"k": "v"}}, nil)
	require.NoError(t, err)
	_, err = m.Create(Spec{Name: "brief", Ephemeral: true}, nil)
	require.NoError(t, err)
	_, err = m.Update(ctx, "db", Change{Memory: 256 << 20})
	require.NoError(t, err)
	before, err := m.Inspect("db")
	require.NoError(t, err)
	require.NoError(t, m.Close())

	// What a program leaves that is killed while it makes a machine.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "half"), 0o700))
	m, _, _ = newManager(t, dir)
	require.NoDirExists(t, filepath.Join(dir, "half"))
	var names []string
	for _, i := range m.List() {
		names = append(names, i.Spec.Name)
	}
	require.Equal(t, []string{"db", "default"}, names)
	after, err := m.Inspect("db")
	require.NoError(t, err)
	require.Equal(t, before.Spec, after.Spec)
	require.Equal(t, Spec{Name: "db", CPUs: 1, Memory: 256 << 20, Disk: 1 << 30, Labels: map[string]string{"k": "v"}}, after.Spec)
	require.True(t, before.Created.Equal(after.Created))
	require.NoError(t, m.Remove(ctx, "db", false, func(context.Context) error { return nil }))
	require.NoDirExists(t, filepath.Join(dir, "db"))
	_, err = m.Inspect("db")
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = m.Create(Spec{Name: "db"}, nil)
	require.NoError(t, err)
}

func TestSpecsThatCannotWork(t *testing.T) {
	m, _, _ := newManager(t, t.TempDir())
	for text, s := range map[string]Spec{
		"machine name": {Name: "../x"}, `name ".hidden"`: {Name: ".hidden"}, "CPUs 256": {Name: "a", CPUs: 256},
		"CPUs -1": {Name: "a", CPUs: -1}, "Memory 5": {Name: "a", Memory: 5}, "size of the disk": {Name: "a", Disk: -1},
		"label": {Name: "a", Labels: map[string]string{"": "x"}},
	} {
		_, err := m.Create(s, nil)
		require.ErrorIs(t, err, errs.ErrInvalid, text)
		require.ErrorContains(t, err, text)
	}
	_, err := m.Create(Spec{Name: "default"}, nil)
	require.ErrorIs(t, err, errs.ErrExists)
	_, err = m.Update(t.Context(), "default", Change{CPUs: 1})
	require.ErrorIs(t, err, errs.ErrConflict)
	require.ErrorIs(t, m.Remove(t.Context(), "default", true, nil), errs.ErrConflict)
	require.ErrorIs(t, m.Start(t.Context(), "none"), errs.ErrNotFound)
	boom := errors.New("boom")
	_, err = m.Create(Spec{Name: "a"}, func(*machine.Dir) error { return boom })
	require.ErrorIs(t, err, boom)
	_, err = m.Create(Spec{Name: "a"}, nil)
	require.NoError(t, err, "nothing of it was left")
}

func TestDamagedRecordIsSeen(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bad"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad", recordFile), []byte("{"), 0o600))
	m, _, _ := newManager(t, dir)
	i, err := m.Inspect("bad")
	require.NoError(t, err)
	require.Contains(t, i.Reason, "corrupt")
	require.ErrorIs(t, m.Start(t.Context(), "bad"), errs.ErrCorrupt, "it is not started over its own data")
	require.NoError(t, m.Remove(t.Context(), "bad", false, func(context.Context) error { return nil }))
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"machine":{"name":"a","cpus":1,"memory":536870912,"disk":1073741824}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decodeRecord(b, "a")
		if err == nil {
			require.Equal(t, "a", rec.Spec.Name)
			require.NoError(t, rec.Spec.check())
		}
	})
}

func TestIdleAndPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, _ := newManager(t, t.TempDir())
		ctx := t.Context()
		_, release, err := m.Acquire(ctx, "default")
		require.NoError(t, err)
		release()
		time.Sleep(2 * time.Minute)
		require.Equal(t, lifecycle.Stopped, state(t, m, "default"), "idle")
		require.NoError(t, m.Start(ctx, "default"))
		time.Sleep(time.Hour)
		require.Equal(t, lifecycle.Ready, state(t, m, "default"), "started by name")
		f, _ := m.Current("default")
		f.end(errors.New("crash"))
		time.Sleep(time.Hour)
		require.Equal(t, lifecycle.Ready, state(t, m, "default"), "recovered, and still not idle")
		require.Equal(t, 3, h.count("default"))
		i, err := m.Inspect("default")
		require.NoError(t, err)
		require.Equal(t, 1, i.Restarts)
		require.NoError(t, m.Stop(ctx, "default"))
		require.NoError(t, m.Stop(ctx, "default"))
		_, release, err = m.Acquire(ctx, "default")
		require.NoError(t, err)
		release()
		time.Sleep(2 * time.Minute)
		require.Equal(t, lifecycle.Stopped, state(t, m, "default"), "idle again after Stop")
		require.NoError(t, m.Close())
	})
}

func TestPausedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, _ := newManager(t, t.TempDir())
		ctx := t.Context()
		require.ErrorIs(t, m.Pause(ctx, "default"), errs.ErrConflict)
		_, release, err := m.Acquire(ctx, "default")
		require.NoError(t, err)
		require.NoError(t, m.Pause(ctx, "default"))
		require.ErrorIs(t, m.Pause(ctx, "default"), errs.ErrConflict)
		release()
		time.Sleep(time.Hour)
		f, ok := m.Current("default")
		require.True(t, ok, "a paused machine is not idle")
		require.True(t, f.paused)
		_, _, err = m.Acquire(ctx, "default")
		require.ErrorIs(t, err, errs.ErrConflict)
		require.NoError(t, m.Resume(ctx, "default"))
		require.ErrorIs(t, m.Resume(ctx, "default"), errs.ErrConflict)
		time.Sleep(time.Hour)
		require.Equal(t, lifecycle.Stopped, state(t, m, "default"))
		_, release, err = m.Acquire(ctx, "default")
		require.NoError(t, err)
		release()
		require.NoError(t, m.Pause(ctx, "default"))
		require.NoError(t, m.Stop(ctx, "default"))
		i, err := m.Inspect("default")
		require.NoError(t, err)
		require.False(t, i.Paused)
		require.NoError(t, m.Close())
	})
}

// TestDiskIsThereForWhoNeedsIt starts machines for callers who need the disk and for others, and tells the start which.
func TestDiskIsThereForWhoNeedsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, _ := newManager(t, t.TempDir())
		ctx := t.Context()
		require.NoError(t, m.Start(ctx, "default"))
		f, release, err := m.Acquire(ctx, "default")
		require.NoError(t, err)
		require.False(t, f.usesDisk(), "nobody has needed it")
		release()
		_, release, err = m.Use(ctx, "default")
		require.NoError(t, err)
		require.True(t, f.usesDisk())
		release()
		require.NoError(t, m.Stop(ctx, "default"))
		_, release, err = m.Use(ctx, "default")
		require.NoError(t, err)
		release()
		require.Equal(t, []bool{false, true}, h.wanted)
		require.NoError(t, m.Stop(ctx, "default"))

		h.mu.Lock()
		h.wait = make(chan struct{})
		h.mu.Unlock()
		var wg sync.WaitGroup
		brief, cancel := context.WithCancel(ctx)
		wg.Go(func() {
			_, _, err := m.Use(brief, "default")
			require.ErrorIs(t, err, context.Canceled)
		})
		wg.Go(func() { require.NoError(t, m.Start(ctx, "default")) })
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(h.wait)
		wg.Wait()
		require.Equal(t, []bool{false, true, false}, h.wanted, "who needed it has gone")
		require.NoError(t, m.Close())
	})
}

// TestBadDiskLeavesTheMachine: who needs the disk gets its error, and holds nothing.
func TestBadDiskLeavesTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, _ := newManager(t, t.TempDir())
		ctx := t.Context()
		h.bad = errs.ErrCorrupt
		_, release, err := m.Acquire(ctx, "default")
		require.NoError(t, err)
		_, _, err = m.Use(ctx, "default")
		require.ErrorIs(t, err, errs.ErrCorrupt)
		require.Equal(t, lifecycle.Ready, state(t, m, "default"))
		release()
		time.Sleep(2 * time.Minute)
		require.Equal(t, lifecycle.Stopped, state(t, m, "default"), "nothing holds it")
		require.NoError(t, m.Close())
	})
}

// TestFirstStartIsTriedOnce: what cannot boot is not tried again, and what has been up is, unless the error says never.
func TestFirstStartIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, h, _ := newManager(t, t.TempDir())
		ctx := t.Context()
		h.err = fmt.Errorf("no QEMU: %w", errs.ErrUnavailable)
		require.ErrorIs(t, m.Start(ctx, "default"), errs.ErrUnavailable)
		require.Equal(t, 1, h.count("default"))
		h.err = nil
		require.NoError(t, m.Start(ctx, "default"))
		h.mu.Lock()
		h.err = fmt.Errorf("busy: %w", errs.ErrUnavailable)
		h.mu.Unlock()
		f, _ := m.Current("default")
		f.end(errors.New("crash"))
		time.Sleep(time.Hour)
		require.Equal(t, 5, h.count("default"), "three more attempts after the crash")
		require.Equal(t, lifecycle.Failed, state(t, m, "default"))
		h.mu.Lock()
		h.err = fmt.Errorf("kernel: %w", errs.ErrNotFound)
		h.mu.Unlock()
		require.ErrorIs(t, m.Start(ctx, "default"), errs.ErrNotFound)
		require.Equal(t, 6, h.count("default"))
		require.NoError(t, m.Close())
	})
}

func TestTwoPrograms(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	first, _, _ := newManager(t, dir)
	_, err := first.Create(Spec{Name: "db"}, nil)
	require.NoError(t, err)
	var taken []string
	second, _, _ := newManager(t, dir, func(c *Config[*fake]) {
		c.Taken = func(name string) error { taken = append(taken, name); return nil }
	})
	require.True(t, first.Keeps("default") && first.Keeps("db"))
	require.False(t, second.Keeps("default") || second.Keeps("db"))
	i, err := second.Inspect("db")
	require.NoError(t, err)
	require.True(t, i.Foreign)
	err = second.Start(ctx, "db")
	require.ErrorIs(t, err, errs.ErrInUse)
	require.ErrorContains(t, err, "this process")
	_, err = second.Create(Spec{Name: "own"}, nil)
	require.NoError(t, err)
	_, err = first.Create(Spec{Name: "own"}, nil)
	require.Error(t, err)
	_, err = New(Config[*fake]{
		Dir: dir, Default: Spec{Name: "default"}, LockTimeout: -1, Events: &event.Bus{}, Logger: slog.New(slog.DiscardHandler),
	})
	require.ErrorIs(t, err, errs.ErrInUse)

	require.NoError(t, first.Close())
	require.NoError(t, second.Start(ctx, "db"))
	require.Equal(t, []string{"db"}, taken)
	require.True(t, second.Keeps("db"))
}

func TestWaitForAnotherProgram(t *testing.T) {
	dir := t.TempDir()
	first, _, _ := newManager(t, dir)
	logger := slog.New(slog.DiscardHandler)
	began := time.Now()
	_, err := New(Config[*fake]{Dir: dir, Default: Spec{Name: "default"}, LockTimeout: 30 * time.Millisecond, Events: &event.Bus{}, Logger: logger})
	require.ErrorIs(t, err, errs.ErrInUse)
	require.GreaterOrEqual(t, time.Since(began), 30*time.Millisecond)
	got := make(chan error, 1)
	go func() {
		m, err := New(Config[*fake]{Dir: dir, Default: Spec{Name: "default"}, LockTimeout: time.Minute, Events: &event.Bus{}, Logger: logger})
		if err == nil {
			err = m.Close()
		}
		got <- err
	}()
	require.NoError(t, first.Close())
	require.NoError(t, <-got)
}

// TestCloseDuringEverything closes a manager while machines are made, started, paused, stopped and removed.
func TestCloseDuringEverything(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		m, _, bus := newManager(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				name := fmt.Sprint("m", i%3)
				for ctx.Err() == nil {
					_, _ = m.Create(Spec{Name: name, Ephemeral: i == 0}, nil)
					_ = m.Start(ctx, name)
					_ = m.Pause(ctx, name)
					if _, release, err := m.Acquire(ctx, name); err == nil {
						release()
					}
					_ = m.Resume(ctx, name)
					_ = m.Stop(ctx, name)
					_ = m.Remove(ctx, name, i%2 == 0, func(context.Context) error { return nil })
				}
			})
		}
		for range 50 {
			m.List()
		}
		cancel()
		require.NoError(t, m.Close())
		wg.Wait()
		bus.Close()
		again, _, _ := newManager(t, dir)
		for _, i := range again.List() {
			require.False(t, i.Foreign, "a lock was left")
		}
		require.NoError(t, again.Close())
	}
}
