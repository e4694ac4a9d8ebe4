// Package machines keeps the machines of a Runtime: their records, which of them belong to this program, and for each a
// supervisor that starts it on demand and stops it when it is idle. What a machine is made of it does not know.
//
// A machine belongs to one program at a time, by the lock of its directory. A Manager takes all that are free when it is
// made; those of others are listed, and taken when they are used and have become free.
package machines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// Machine is a machine that runs.
type Machine interface {
	lifecycle.Target
	// Pause stops the machine's processors, and Resume lets them go on. Both do nothing where it is so already.
	Pause(context.Context) error
	Resume(context.Context) error
	// UseDisk makes sure that the machine has its disk. Where it has none it does nothing.
	UseDisk(context.Context) error
}

// Config is what a Manager needs.
type Config[T Machine] struct {
	// Dir is the directory of all machines, with a directory for each.
	Dir string
	// Default is the machine that is there without being created. Its fields are the defaults of those that are. Where it
	// is Ephemeral, or belongs to another program, this program has one of that name to itself, and it leaves nothing.
	Default Spec
	// Prepare fills the directory of an ephemeral default machine. nil is nothing.
	Prepare func(*machine.Dir) error
	// Alone leaves the machines alone that are in Dir: only those are there that are created.
	Alone bool
	// LockTimeout is how long is waited for a machine that another program has. 0 does not wait, and lets the default
	// machine be one of this program's own. Less than 0 does not wait, and makes that ErrInUse too.
	LockTimeout time.Duration
	// Start starts a machine whose directory is dir. See lifecycle.Options. wanted tells whether somebody waits for it who
	// needs its disk.
	Start func(ctx context.Context, s Spec, dir *machine.Dir, wanted func() bool) (T, error)
	// Taken is called when a machine that belonged to another program has become this one's. nil is nobody.
	Taken func(name string) error

	IdleTimeout time.Duration            // see lifecycle.Options
	Recovery    lifecycle.RecoveryPolicy // of machines that have been up; a first start is tried once. Retryable is not used
	Events      *event.Bus
	Logger      *slog.Logger // not nil
}

// Manager owns the machines of a Runtime. Its methods may be called from many goroutines.
type Manager[T Machine] struct {
	cfg Config[T]

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry[T]
}

// entry is one machine.
type entry[T Machine] struct {
	op chan struct{} // one operation that changes the entry at a time: holding it is having put a token in

	// The rest is under Manager.mu; dir and sup are set once.
	spec     Spec
	created  time.Time
	dir      *machine.Dir             // nil while another program has the machine
	sup      *lifecycle.Supervisor[T] // nil with dir
	gone     bool                     // removed
	making   bool                     // it is being created: nobody sees it
	paused   bool
	unpause  func() // lets go of what holds a paused machine
	started  time.Time
	reason   string // why it is where it is, where that was not asked for
	restarts int

	broken error        // of its record: it can only be removed. Set once
	booted atomic.Bool  // it has been up
	users  atomic.Int32 // that wait for it and need its disk
}

// New returns a Manager of the machines in Config.Dir. Nothing is started. Close it.
func New[T Machine](cfg Config[T]) (*Manager[T], error) {
	m := &Manager[T]{cfg: cfg, entries: make(map[string]*entry[T])}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w directory of machines: %w", errs.ErrUnavailable, err)
	}
	machine.Sweep(cfg.Dir)
	if err := m.openDefault(); err != nil {
		return nil, err
	}
	if err := m.scan(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Manager[T]) openDefault() (err error) {
	s, private := m.cfg.Default, m.cfg.Default.Ephemeral
	e := newEntry[T](s, time.Now())
	if !private {
		e.dir, err = machine.WaitDir(context.Background(), m.cfg.Dir, s.Name, m.cfg.LockTimeout)
		if errors.Is(err, errs.ErrInUse) && m.cfg.LockTimeout == 0 {
			m.cfg.Logger.Info("this runtime has a machine of its own, and its containers end with it", "why", err)
			private = true
		} else if err != nil {
			return err
		}
	}
	if private {
		e.spec.Ephemeral = true
		if e.dir, err = machine.OpenPrivateDir(m.cfg.Dir); err != nil {
			return err
		}
		if m.cfg.Prepare != nil {
			if err := m.cfg.Prepare(e.dir); err != nil {
				return errors.Join(err, e.dir.Close())
			}
		}
	}
	m.supervise(e)
	m.entries[s.Name] = e
	return nil
}

func newEntry[T Machine](s Spec, created time.Time) *entry[T] {
	return &entry[T]{op: make(chan struct{}, 1), spec: s.clone(), created: created}
}

// scan finds the machines that there are and takes those that are free.
func (m *Manager[T]) scan() error {
	if m.cfg.Alone {
		return nil
	}
	list, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return fmt.Errorf("%w directory of machines: %w", errs.ErrUnavailable, err)
	}
	for _, d := range list {
		name := d.Name()
		if !d.IsDir() || machine.CheckName(name) != nil || m.entries[name] != nil {
			continue
		}
		if err := m.found(name); err != nil {
			m.cfg.Logger.Warn("open machine", "machine", name, "err", err)
		}
	}
	return nil
}

// found makes an entry of a directory.
func (m *Manager[T]) found(name string) error {
	path := filepath.Join(m.cfg.Dir, name)
	dir, err := machine.OpenDir(m.cfg.Dir, name)
	if err != nil && !errors.Is(err, errs.ErrInUse) {
		return err
	}
	rec, rerr := readRecord(path, name)
	switch {
	case errors.Is(rerr, errs.ErrNotFound) && dir != nil: // its creation was cut off, or it is one that was default once
		return m.sweep(dir)
	case errors.Is(rerr, errs.ErrNotFound): // it is being created
		return nil
	case rerr != nil:
		m.cfg.Logger.Warn("a machine cannot be used", "machine", name, "err", rerr)
		rec = record{Spec: m.cfg.Default.clone()} // so that it is seen, and can be removed
		rec.Spec.Name, rec.Spec.Ephemeral = name, false
	}
	e := newEntry[T](rec.Spec, rec.Created)
	e.dir = dir
	if rerr != nil {
		e.broken, e.reason = rerr, rerr.Error()
	}
	if dir != nil {
		m.supervise(e)
	}
	m.entries[name] = e
	return nil
}

// sweep removes the directory of a machine without a record, unless there is data in it.
func (m *Manager[T]) sweep(dir *machine.Dir) error {
	if dir.HasData() {
		m.cfg.Logger.Warn("a machine's directory has data and no record, and is left alone", "path", dir.Path())
		return dir.Close()
	}
	return dir.Remove()
}

// supervise gives an entry whose directory was taken its supervisor.
func (m *Manager[T]) supervise(e *entry[T]) {
	policy := m.cfg.Recovery
	policy.Retryable = func(err error) bool { return e.booted.Load() && helps(err) }
	e.sup = lifecycle.New(lifecycle.Options[T]{
		Start:       func(ctx context.Context) (T, error) { return m.start(ctx, e) },
		IdleTimeout: m.cfg.IdleTimeout, Recovery: policy,
		OnState: func(t lifecycle.Transition) { m.onState(e, t) },
	})
}

// helps tells whether another attempt to start may end better.
func helps(err error) bool {
	for _, never := range []error{errs.ErrInvalid, errs.ErrUnsupported, errs.ErrNotFound, errs.ErrCorrupt} {
		if errors.Is(err, never) {
			return false
		}
	}
	return true
}

func (m *Manager[T]) start(ctx context.Context, e *entry[T]) (T, error) {
	if e.broken != nil {
		var none T
		return none, fmt.Errorf("start machine: %w; it can only be removed", e.broken)
	}
	m.mu.Lock()
	spec, dir := e.spec.clone(), e.dir
	m.mu.Unlock()
	return m.cfg.Start(ctx, spec, dir, func() bool { return e.users.Load() > 0 })
}

// onState notes and publishes a transition.
func (m *Manager[T]) onState(e *entry[T], t lifecycle.Transition) {
	m.mu.Lock()
	name := e.spec.Name
	e.reason = ""
	if t.Err != nil {
		e.reason = t.Err.Error()
	}
	if t.To == lifecycle.Ready {
		e.started = time.Now()
		e.booted.Store(true)
	} else {
		e.paused = false
	}
	if t.RetryIn > 0 {
		e.restarts++
	}
	m.mu.Unlock()
	kinds := map[lifecycle.State]event.Kind{
		lifecycle.Starting: event.MachineStarting, lifecycle.Ready: event.MachineReady,
		lifecycle.Stopping: event.MachineStopping, lifecycle.Stopped: event.MachineStopped,
		lifecycle.Crashed: event.MachineCrashed, lifecycle.Failed: event.MachineFailed,
	}
	kind, ok := kinds[t.To]
	if !ok {
		return
	}
	ev := event.Event{Kind: kind, Machine: name, Attributes: map[string]string{}}
	if t.Err != nil {
		ev.Attributes[event.AttrError] = t.Err.Error()
	}
	if t.RetryIn > 0 {
		ev.Attributes[event.AttrRetryIn] = t.RetryIn.String()
	}
	m.cfg.Events.Publish(ev)
}

// Keeps tells that a machine belongs to this program and outlives it.
func (m *Manager[T]) Keeps(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[name]
	return e != nil && e.dir != nil && !e.spec.Ephemeral
}

// Taken tells whether a program has a machine, this one or another.
func (m *Manager[T]) Taken(name string) bool {
	if m.Keeps(name) {
		return true
	}
	_, taken := machine.Owner(m.cfg.Dir, name)
	return taken
}

// Take makes a machine that another program had this one's. While that has it, the error is ErrInUse and names the
// process. A machine that this program has in another form, as its default one, is ErrConflict.
func (m *Manager[T]) Take(ctx context.Context, name string) error {
	e, err := m.owned(ctx, name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	private := e.spec.Ephemeral
	m.mu.Unlock()
	if !private {
		return nil
	}
	if who, taken := machine.Owner(m.cfg.Dir, name); taken {
		return fmt.Errorf("machine %s: %w by %s: do it there, or end that program", name, errs.ErrInUse, who)
	}
	return fmt.Errorf("machine %s: %w: this program has one of its own, since another had that: close the runtime and open it again", name, errs.ErrConflict)
}

// find returns the machine with the name.
func (m *Manager[T]) find(name string) (*entry[T], error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	e := m.entries[name]
	if e == nil || e.making {
		return nil, fmt.Errorf("machine %w: no name is %.80q", errs.ErrNotFound, name)
	}
	return e, nil
}

// lock takes the machine for one operation.
func (e *entry[T]) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case e.op <- struct{}{}:
		return func() { <-e.op }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// owned finds a machine and makes sure that it belongs to this program.
func (m *Manager[T]) owned(ctx context.Context, name string) (*entry[T], error) {
	e, err := m.find(name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	mine := e.sup != nil
	m.mu.Unlock()
	if mine {
		return e, nil
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return e, m.take(ctx, e)
}

// take takes the directory of a machine that another program had. The caller holds op.
func (m *Manager[T]) take(ctx context.Context, e *entry[T]) error {
	m.mu.Lock()
	name, mine, gone := e.spec.Name, e.sup != nil, e.gone
	m.mu.Unlock()
	if gone {
		return fmt.Errorf("machine %s %w: it was removed", name, errs.ErrNotFound)
	}
	if mine {
		return nil
	}
	dir, err := machine.WaitDir(ctx, m.cfg.Dir, name, m.cfg.LockTimeout)
	if err != nil {
		return err
	}
	rec, err := readRecord(dir.Path(), name)
	if errors.Is(err, errs.ErrNotFound) { // its owner has removed it
		m.mu.Lock()
		delete(m.entries, name)
		e.gone = true
		m.mu.Unlock()
		return errors.Join(fmt.Errorf("machine %s %w: its owner has removed it", name, errs.ErrNotFound), dir.Remove())
	}
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errors.Join(errs.ErrClosed, dir.Close())
	}
	e.spec, e.created, e.dir, e.reason = rec.Spec, rec.Created, dir, ""
	m.supervise(e)
	m.mu.Unlock()
	if m.cfg.Taken != nil {
		return m.cfg.Taken(name)
	}
	return nil
}

// Close stops all machines and gives their directories back. It returns when nothing of them is left.
func (m *Manager[T]) Close() error {
	m.mu.Lock()
	m.closed = true
	all := make([]*entry[T], 0, len(m.entries))
	for _, e := range m.entries {
		all = append(all, e)
	}
	m.mu.Unlock()
	result := make([]error, len(all))
	var wg sync.WaitGroup
	for i, e := range all {
		wg.Go(func() { result[i] = m.end(e) })
	}
	wg.Wait()
	return errors.Join(result...)
}

// end closes what there is of an entry.
func (m *Manager[T]) end(e *entry[T]) error {
	e.op <- struct{}{} // an operation in progress is short: its caller's context has ended, or the supervisor ends it
	defer func() { <-e.op }()
	m.mu.Lock()
	sup, dir, gone := e.sup, e.dir, e.gone
	m.mu.Unlock()
	if sup == nil || gone {
		return nil
	}
	return errors.Join(sup.Close(), dir.Close())
}

// names returns the names of all machines, sorted. The caller holds mu.
func (m *Manager[T]) names() []string {
	var names []string
	for name, e := range m.entries {
		if !e.making {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, strings.Compare)
	return names
}
