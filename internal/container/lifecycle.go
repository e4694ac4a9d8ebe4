package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Stop asks the process of a container to end and kills it where it does not within the timeout: nil is the container's
// own, negative for ever. It returns when the process has ended. A container without a process is left as it is; a
// restart that is pending does not take place.
func (m *Manager) Stop(ctx context.Context, ref, signal string, timeout *time.Duration) error {
	if signal != "" {
		if err := CheckSignal(signal); err != nil {
			return err
		}
	}
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	m.mu.Lock()
	e.stopped = true
	if e.info.State == StateRestarting {
		m.giveUpRestart(e)
	}
	grace := e.info.Spec.StopTimeout
	signal = first(signal, e.info.StopSignal)
	m.mu.Unlock()
	if timeout != nil {
		grace = *timeout
	} else if grace == 0 {
		grace = DefaultStopTimeout
	}
	defer m.settle(e)
	r, err := m.askToEnd(ctx, e, ref, signal)
	if err != nil || r == nil {
		return err
	}
	if err := waitRun(ctx, r, grace); err == nil || ctx.Err() != nil {
		return err
	}
	if err := m.killRun(ctx, e, r); err != nil {
		return err
	}
	return waitRun(ctx, r, -1)
}

// askToEnd sends the signal, and wakes a paused container so that it can act on it. It returns nil where there is no
// process.
func (m *Manager) askToEnd(ctx context.Context, e *entry, ref, signal string) (*run, error) {
	unlock, err := e.lock(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m.mu.Lock()
	if e.info.State == StateRestarting {
		m.giveUpRestart(e)
	}
	state, inst, r := e.info.State, e.inst, e.run
	if state != StateRunning && state != StatePaused || inst == nil {
		m.mu.Unlock()
		return nil, nil
	}
	e.stopped = true // a start may have come between
	m.mu.Unlock()
	a := inst.machine.Agent()
	if err := a.Kill(ctx, api.KillRequest{ID: e.id, Signal: signal}); err != nil && !m.over(r, inst, err) {
		return nil, err
	}
	if state == StatePaused {
		if err := m.pause(ctx, e, true); err != nil && !m.over(r, inst, err) {
			return nil, err
		}
	}
	return r, nil
}

// over tells that an error only says that the process has ended, or is about to be known to have.
func (m *Manager) over(r *run, inst *instance, err error) bool {
	return isDone(r.done) || isDone(inst.machine.Done()) || errors.Is(err, errs.ErrConflict)
}

// killRun kills the process of a run that has not ended.
func (m *Manager) killRun(ctx context.Context, e *entry, r *run) error {
	unlock, err := e.lock(ctx, e.id)
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	inst := e.inst
	m.mu.Unlock()
	if isDone(r.done) || inst == nil {
		return nil
	}
	err = inst.machine.Agent().Kill(ctx, api.KillRequest{ID: e.id, Signal: "KILL"})
	if err != nil && !m.over(r, inst, err) {
		return err
	}
	return nil
}

// errGrace means that a run did not end in time.
var errGrace = errors.New("the process did not end in time")

// waitRun waits for the end of a run, for ever where the timeout is negative.
func waitRun(ctx context.Context, r *run, timeout time.Duration) error {
	var late <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-r.done:
		return nil
	case <-late:
		return errGrace
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Restart stops a container, where it runs, and starts it.
func (m *Manager) Restart(ctx context.Context, ref, signal string, timeout *time.Duration) error {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	if err := m.Stop(ctx, e.id, signal, timeout); err != nil {
		return err
	}
	return m.Start(ctx, e.id)
}

// Pause freezes the processes of a running container; Resume thaws them.
func (m *Manager) Pause(ctx context.Context, ref string) error { return m.freeze(ctx, ref, false) }

// Resume thaws the processes of a paused container.
func (m *Manager) Resume(ctx context.Context, ref string) error { return m.freeze(ctx, ref, true) }

func (m *Manager) freeze(ctx context.Context, ref string, resume bool) error {
	e, unlock, err := m.begin(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	want, what := StateRunning, "pause container"
	if resume {
		want, what = StatePaused, "resume container"
	}
	if e.info.State != want || e.inst == nil {
		defer m.mu.Unlock()
		return e.conflict(what, fmt.Sprintf("it must be %s", want))
	}
	m.mu.Unlock()
	defer m.settle(e)
	return m.pause(ctx, e, resume)
}

// pause freezes or thaws a container. The caller holds op.
func (m *Manager) pause(ctx context.Context, e *entry, resume bool) error {
	m.mu.Lock()
	inst, r := e.inst, e.run
	m.mu.Unlock()
	if inst == nil {
		return fmt.Errorf("%w: the machine of container %q has ended", errs.ErrUnavailable, e.info.Name)
	}
	if err := inst.machine.Agent().Pause(ctx, api.PauseRequest{ID: e.id, Resume: resume}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if isDone(r.done) {
		return nil
	}
	next, kind := StatePaused, event.ContainerPaused
	if resume {
		next, kind = StateRunning, event.ContainerResumed
	}
	if e.info.to(next) {
		m.publish(kind, e.info, nil)
		m.touch(e)
	}
	return nil
}

// Rename gives a container another name. That of its own is no error.
func (m *Manager) Rename(ctx context.Context, ref, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	if err := m.rename(e, name); err != nil {
		return err
	}
	return m.saved(e)
}

func (m *Manager) rename(e *entry, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := e.info.Name
	if old == name {
		return nil
	}
	if e.info.State == StateRemoving || e.info.State == StateDead {
		return e.conflict("rename container", "it can only be removed")
	}
	if err := m.reserveLocked(name, e.id); err != nil {
		return err
	}
	delete(m.names, old)
	e.info.Name, e.info.Spec.Name = name, name
	m.cfg.Volumes.Rename(e.id, name)
	if m.cfg.Networks != nil {
		m.cfg.Networks.Rename(e.id, name)
	}
	by := m.user(e.info)
	by.Running = e.marked
	m.cfg.Images.Renew(by)
	m.publish(event.ContainerRenamed, e.info, map[string]string{event.AttrOldName: old})
	m.touch(e)
	return nil
}

// Update changes limits, where change sets any, and the restart policy, where that is not nil.
func (m *Manager) Update(ctx context.Context, ref string, change Resources, restart *RestartPolicy) (Info, error) {
	e, unlock, err := m.begin(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	info, err := m.update(ctx, e, change, restart)
	if err != nil {
		return Info{}, err
	}
	return info, m.saved(e)
}

// update does the work of Update. The caller holds op.
func (m *Manager) update(ctx context.Context, e *entry, change Resources, restart *RestartPolicy) (Info, error) {
	m.mu.Lock()
	spec, inst := e.info.Spec, e.inst
	dead := e.info.State == StateDead
	m.mu.Unlock()
	if dead {
		return Info{}, fmt.Errorf("update container: %w: its record is damaged: it can only be removed", errs.ErrConflict)
	}
	spec.Resources = spec.Resources.over(change)
	if restart != nil {
		spec.Restart = *restart
	}
	if err := spec.Validate(); err != nil {
		return Info{}, err
	}
	if inst != nil && change != (Resources{}) {
		if err := inst.machine.Agent().Update(ctx, api.UpdateRequest{ID: e.id, Resources: change.compile()}); err != nil {
			return Info{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.info.Spec.Resources, e.info.Spec.Restart = spec.Resources, spec.Restart
	if e.inst != nil {
		e.inst.req.Resources = spec.Resources.compile()
	}
	if e.info.State == StateRestarting && !spec.Restart.restarts() {
		m.giveUpRestart(e)
	}
	m.publish(event.ContainerUpdated, e.info, nil)
	m.touch(e)
	return e.info.clone(), nil
}
