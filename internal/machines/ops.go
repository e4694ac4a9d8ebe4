package machines

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// Info is a machine at one moment.
type Info struct {
	Spec     Spec
	Created  time.Time
	State    lifecycle.State
	Paused   bool      // with Ready
	Foreign  bool      // another program has it: nothing is known of its State
	Started  time.Time // the last time, in this program
	Reason   string    // why it is where it is, where that was not asked for
	Restarts int       // after crashes, in this program
	Dir      string    // "" where another program has it
	Private  bool      // the directory goes with the program
}

// info returns what is known of an entry. The caller holds mu.
func (e *entry[T]) info() Info {
	i := Info{
		Spec: e.spec.clone(), Created: e.created, Paused: e.paused, Foreign: e.sup == nil,
		Started: e.started, Reason: e.reason, Restarts: e.restarts,
	}
	if e.sup != nil {
		i.State, i.Dir, i.Private = e.sup.State(), e.dir.Path(), e.dir.Private()
	}
	return i
}

// Inspect returns what is known of a machine.
func (m *Manager[T]) Inspect(name string) (Info, error) {
	e, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.info(), nil
}

// List returns all machines, by name.
func (m *Manager[T]) List() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Info
	for _, name := range m.names() {
		out = append(out, m.entries[name].info())
	}
	return out
}

// Create makes a machine. It does not start it. A name that is taken is ErrExists. prepare fills its directory; nil is
// nothing.
func (m *Manager[T]) Create(s Spec, prepare func(*machine.Dir) error) (Info, error) {
	s, err := s.complete(m.cfg.Default)
	if err != nil {
		return Info{}, err
	}
	e := newEntry[T](s, time.Now())
	e.making = true
	m.mu.Lock()
	switch {
	case m.closed:
		err = errs.ErrClosed
	case m.entries[s.Name] != nil:
		err = fmt.Errorf("machine name %q %w: remove that machine or choose another name", s.Name, errs.ErrExists)
	default:
		m.entries[s.Name] = e
	}
	m.mu.Unlock()
	if err != nil {
		return Info{}, err
	}
	dir, err := m.makeDir(e, prepare)
	m.mu.Lock()
	defer m.mu.Unlock()
	e.making = false
	if err == nil && m.closed {
		err = errors.Join(errs.ErrClosed, dir.Remove())
	}
	if err != nil {
		delete(m.entries, s.Name)
		e.gone = true
		return Info{}, err
	}
	e.dir = dir
	m.supervise(e)
	m.cfg.Events.Publish(event.Event{Kind: event.MachineCreated, Machine: s.Name})
	return e.info(), nil
}

// makeDir makes the directory of a new machine. The record comes last: with it the machine is there.
func (m *Manager[T]) makeDir(e *entry[T], prepare func(*machine.Dir) error) (dir *machine.Dir, err error) {
	s := e.spec
	if s.Ephemeral {
		dir, err = machine.OpenPrivateDir(m.cfg.Dir)
	} else {
		dir, err = machine.OpenDir(m.cfg.Dir, s.Name)
	}
	if err != nil {
		return nil, err
	}
	if !s.Ephemeral {
		if _, rerr := readRecord(dir.Path(), s.Name); !errors.Is(rerr, errs.ErrNotFound) || dir.HasData() { // another program's, made meanwhile
			return nil, errors.Join(fmt.Errorf("machine name %q %w: another program has made it", s.Name, errs.ErrExists), dir.Close())
		}
	}
	if prepare != nil {
		err = prepare(dir)
	}
	if err == nil && !s.Ephemeral {
		err = writeRecord(dir.Path(), s, e.created)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Remove())
	}
	return dir, nil
}

// Start starts a machine and lets it run, idle or not, until Stop. One that runs goes on.
func (m *Manager[T]) Start(ctx context.Context, name string) error {
	e, err := m.owned(ctx, name)
	if err != nil {
		return err
	}
	_, err = e.sup.Pin(ctx)
	return err
}

// Stop shuts a machine down, whoever uses it. One that does not run is left as it is.
func (m *Manager[T]) Stop(ctx context.Context, name string) error {
	e, err := m.owned(ctx, name)
	if err != nil {
		return err
	}
	return e.sup.Stop(ctx)
}

// Pause stops the processors of a running machine. One that does not run is ErrConflict, and so is one that is paused.
func (m *Manager[T]) Pause(ctx context.Context, name string) error {
	e, unlock, err := m.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	target, release, err := e.hold(ctx)
	if err != nil {
		return fmt.Errorf("pause machine %s: %w", name, err)
	}
	m.mu.Lock()
	paused := e.paused
	m.mu.Unlock()
	if paused {
		release()
		return fmt.Errorf("pause machine %s: %w: it is paused", name, errs.ErrConflict)
	}
	if err := target.Pause(ctx); err != nil {
		release()
		return err
	}
	m.mu.Lock()
	if now, ok := e.sup.Current(); !ok || any(now) != any(target) {
		m.mu.Unlock()
		release()
		return fmt.Errorf("pause machine %s: %w: it has ended", name, errs.ErrUnavailable)
	}
	e.paused, e.unpause = true, release
	m.mu.Unlock()
	m.cfg.Events.Publish(event.Event{Kind: event.MachinePaused, Machine: name})
	return nil
}

// hold holds a machine where it runs.
func (e *entry[T]) hold(ctx context.Context) (target T, release func(), err error) {
	if _, ok := e.sup.Current(); !ok {
		return target, nil, fmt.Errorf("%w: it does not run", errs.ErrConflict)
	}
	return e.sup.Acquire(ctx)
}

// Resume lets a paused machine go on. One that is not paused is ErrConflict.
func (m *Manager[T]) Resume(ctx context.Context, name string) error {
	e, unlock, err := m.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	target, runs := e.sup.Current()
	paused, release := e.paused, e.unpause
	m.mu.Unlock()
	if !paused || !runs {
		return fmt.Errorf("resume machine %s: %w: it is not paused", name, errs.ErrConflict)
	}
	if err := target.Resume(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	e.paused, e.unpause = false, nil
	m.mu.Unlock()
	release()
	m.cfg.Events.Publish(event.Event{Kind: event.MachineResumed, Machine: name})
	return nil
}

// begin takes a machine of this program for one operation.
func (m *Manager[T]) begin(ctx context.Context, name string) (*entry[T], func(), error) {
	e, err := m.owned(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	gone := e.gone
	m.mu.Unlock()
	if gone {
		unlock()
		return nil, nil, fmt.Errorf("machine %s %w: it was removed", name, errs.ErrNotFound)
	}
	return e, unlock, nil
}

// Change is what Update changes; a zero field changes nothing.
type Change struct {
	CPUs   int
	Memory int64
	Labels map[string]string // all of them; nil changes none
}

// Update changes a machine. CPUs and memory are those of the next start. The default machine is ErrConflict: it is what
// the program's configuration says.
func (m *Manager[T]) Update(ctx context.Context, name string, c Change) (Info, error) {
	e, unlock, err := m.begin(ctx, name)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	m.mu.Lock()
	s, dir, created := e.spec.clone(), e.dir, e.created
	m.mu.Unlock()
	if name == m.cfg.Default.Name {
		return Info{}, fmt.Errorf("update machine %s: %w: it is what Config.VM says", name, errs.ErrConflict)
	}
	if e.broken != nil {
		return Info{}, fmt.Errorf("update machine: %w; it can only be removed", e.broken)
	}
	if c.CPUs != 0 {
		s.CPUs = c.CPUs
	}
	if c.Memory != 0 {
		s.Memory = c.Memory
	}
	if c.Labels != nil {
		s.Labels = maps.Clone(c.Labels)
	}
	if err := s.check(); err != nil {
		return Info{}, err
	}
	if !s.Ephemeral {
		if err := writeRecord(dir.Path(), s, created); err != nil {
			return Info{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.spec, e.reason = s, ""
	m.cfg.Events.Publish(event.Event{Kind: event.MachineUpdated, Machine: name})
	return e.info(), nil
}

// Remove removes a machine with all that is on its disk. One that does not stand still is ErrConflict, unless force stops
// it. The default machine is ErrConflict. gone is called when it has stopped and before its directory goes; an error of it
// keeps the machine.
func (m *Manager[T]) Remove(ctx context.Context, name string, force bool, gone func(context.Context) error) error {
	e, unlock, err := m.begin(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if name == m.cfg.Default.Name {
		return fmt.Errorf("remove machine %s: %w: the default machine cannot be removed; stop it, or remove its containers", name, errs.ErrConflict)
	}
	if st := e.sup.State(); !force && st != lifecycle.Stopped && st != lifecycle.Failed {
		return fmt.Errorf("remove machine %s: %w: it runs: stop it first, or force the removal", name, errs.ErrConflict)
	}
	if err := e.sup.Stop(ctx); err != nil && (errors.Is(err, errs.ErrClosed) || ctx.Err() != nil) {
		return err
	}
	if err := gone(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.entries, name)
	e.gone = true
	m.mu.Unlock()
	if err := e.sup.Close(); err != nil {
		m.cfg.Logger.Warn("stop a machine that is removed", "machine", name, "err", err)
	}
	err = e.dir.Remove()
	m.cfg.Events.Publish(event.Event{Kind: event.MachineRemoved, Machine: name})
	return err
}

// Acquire returns the running machine with the name, started if need be, and holds it until release is called, which may
// be done more than once. A paused machine is ErrConflict. Its disk may not be there yet: see Use.
func (m *Manager[T]) Acquire(ctx context.Context, name string) (target T, release func(), err error) {
	e, err := m.free(ctx, name)
	if err != nil {
		return target, nil, err
	}
	return e.sup.Acquire(ctx)
}

// Use is Acquire for what needs the machine's disk: it is there then. A start on the way to that brings it along.
func (m *Manager[T]) Use(ctx context.Context, name string) (target T, release func(), err error) {
	e, err := m.free(ctx, name)
	if err != nil {
		return target, nil, err
	}
	e.users.Add(1)
	target, release, err = e.sup.Acquire(ctx)
	e.users.Add(-1)
	if err != nil {
		return target, release, err
	}
	if err := target.UseDisk(ctx); err != nil {
		release()
		return target, nil, err
	}
	return target, release, nil
}

// free returns a machine of this program that is not paused.
func (m *Manager[T]) free(ctx context.Context, name string) (*entry[T], error) {
	e, err := m.owned(ctx, name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	paused := e.paused
	m.mu.Unlock()
	if paused {
		return nil, fmt.Errorf("machine %s: %w: it is paused: resume it first", name, errs.ErrConflict)
	}
	return e, nil
}

// Current returns the machine with the name where it runs.
func (m *Manager[T]) Current(name string) (target T, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[name]; e != nil && e.sup != nil {
		return e.sup.Current()
	}
	return target, false
}
