package lifecycle

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBoom = errors.New("boom")

// fake is a target.
type fake struct {
	n         int
	rig       *rig
	stopTime  time.Duration // of a graceful shutdown
	stopErr   error
	deaf      bool // does not shut down before ctx ends
	done      chan struct{}
	mu        sync.Mutex
	ended     bool
	err       error
	shutdowns int
}

func (f *fake) Done() <-chan struct{} { return f.done }

func (f *fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// end ends the target by itself.
func (f *fake) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.ended, f.err = true, err
		close(f.done)
	}
}

func (f *fake) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.shutdowns++
	f.mu.Unlock()
	err := f.stopErr
	wait := f.stopTime
	if f.deaf {
		wait = 1000 * time.Hour
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.end(nil)
	f.rig.released(f)
	return err
}

func (f *fake) counts() (shutdowns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shutdowns
}

// rig makes fakes, and checks what holds at all times: transitions are those of the table, and one target lives at a
// time.
type rig struct {
	t         testing.TB
	startTime time.Duration
	startErrs []error // of the next starts, in order; then none
	obeys     bool    // starts end with their ctx
	make      func(*fake)

	mu     sync.Mutex
	all    []*fake
	alive  int
	starts int
	steps  []Transition
	sup    *Supervisor[*fake]
}

func newRig(t testing.TB, tune func(*rig, *Options[*fake])) *rig {
	r := &rig{t: t}
	opts := Options[*fake]{Start: r.start, OnState: r.observe}
	if tune != nil {
		tune(r, &opts)
	}
	r.sup = New(opts)
	return r
}

func (r *rig) start(ctx context.Context) (*fake, error) {
	r.mu.Lock()
	r.starts++
	n, wait, obeys := r.starts, r.startTime, r.obeys
	var err error
	if len(r.startErrs) > 0 {
		err, r.startErrs = r.startErrs[0], r.startErrs[1:]
	}
	r.alive++
	if r.alive > 1 {
		r.t.Errorf("start %d while another target lives", n)
	}
	r.mu.Unlock()
	end := ctx.Done()
	if !obeys {
		end = nil
	}
	select {
	case <-time.After(wait):
	case <-end:
		err = ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.alive--
		return nil, err
	}
	f := &fake{n: n, rig: r, done: make(chan struct{})}
	if r.make != nil {
		r.make(f)
	}
	r.all = append(r.all, f)
	return f, nil
}

func (r *rig) released(*fake) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alive--
}

func (r *rig) observe(t Transition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !t.From.CanFollow(t.To) {
		r.t.Errorf("transition from %s to %s", t.From, t.To)
	}
	from := Stopped
	if len(r.steps) > 0 {
		from = r.steps[len(r.steps)-1].To
	}
	if t.From != from {
		r.t.Errorf("transition from %s in state %s", t.From, from)
	}
	if r.sup != nil && r.sup.State() != t.To {
		r.t.Errorf("State is %s in a transition to %s", r.sup.State(), t.To)
	}
	r.steps = append(r.steps, t)
}

// path returns the states that were entered.
func (r *rig) path() (states []State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.steps {
		states = append(states, s.To)
	}
	return states
}

func (r *rig) last() Transition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.steps[len(r.steps)-1]
}

func (r *rig) targets() []*fake {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// acquire returns a held target.
func (r *rig) acquire() (*fake, func()) {
	r.t.Helper()
	f, release, err := r.sup.Acquire(r.t.Context())
	require.NoError(r.t, err)
	return f, release
}

// gone closes the supervisor and checks that everything was shut down once.
func (r *rig) gone() {
	r.t.Helper()
	_ = r.sup.Close()
	require.Equal(r.t, Closed, r.sup.State())
	for _, f := range r.targets() {
		require.Equal(r.t, 1, f.counts(), "shutdowns of target %d", f.n)
	}
	r.mu.Lock()
	require.Zero(r.t, r.alive)
	r.mu.Unlock()
	_, ok := r.sup.Current()
	require.False(r.t, ok)
	require.Equal(r.t, Closed, r.last().To)
}
