package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Agent is what the manager asks of the guest.
type Agent interface {
	Create(context.Context, api.CreateRequest) error
	Start(context.Context, api.StartRequest) (api.StartReply, error)
	Kill(context.Context, api.KillRequest) error
	Remove(context.Context, api.RemoveRequest) error
	Wait(context.Context, api.WaitRequest) (api.WaitReply, error)
	Attach(ctx context.Context, req api.AttachRequest, stdout, stderr io.Writer) (*agent.Process, error)
}

// Start starts a created container. A command that cannot be executed is an error, and the container has exited then.
func (m *Manager) Start(ctx context.Context, ref string) error {
	e, err := m.lookup(ref)
	if err != nil {
		return err
	}
	unlock, err := e.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.expect(e, ref, StateCreated, "a container runs once: create another"); err != nil {
		return err
	}
	rep, err := e.machine.Agent().Start(ctx, api.StartRequest{ID: e.info.ID})
	if err != nil {
		m.startFailed(e, err)
		return err
	}
	m.mu.Lock()
	started := e.info.to(StateRunning)
	if e.info.Started = time.Now(); started {
		e.info.PID = rep.PID
	}
	info := e.info.clone()
	m.mu.Unlock()
	m.publish(event.ContainerStarted, info)
	return nil
}

// startFailed records the end of a container whose command could not be executed. Other errors leave it created: the
// guest's event tells if it runs after all.
func (m *Manager) startFailed(e *entry, err error) {
	code := ExitCode(err)
	if code == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.markExited(e, api.Exit{Code: code}, err.Error())
}

// ExitCode returns the code with which a container has exited whose start ended with err, as Docker and shells have it,
// and 0 where err says nothing of the command.
func ExitCode(err error) int {
	switch {
	case errors.Is(err, errs.ErrNoCommand):
		return 127
	case errors.Is(err, errs.ErrNoExecutable):
		return 126
	}
	return 0
}

// Discard removes a container whose caller got an error and does not know of it. It does its work on its own time, of
// which Close waits for the end.
func (m *Manager) Discard(id string) {
	e, err := m.lookup(id)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, undoTimeout)
	defer cancel()
	if err := m.remove(ctx, e, id, true); err != nil && !errors.Is(err, errs.ErrNotFound) {
		m.cfg.Logger.Warn("remove container after an error", "id", id, "err", err)
	}
}

// expect checks the state of a container.
func (m *Manager) expect(e *entry, ref string, want State, fix string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.info.State != want {
		return fmt.Errorf("%w: container %q is %s, not %s: %s", errs.ErrConflict, ref, e.info.State, want, fix)
	}
	return nil
}

// Wait returns how the container ended, at once where it has ended. Of a container that was removed meanwhile it tells
// that too.
func (m *Manager) Wait(ctx context.Context, ref string) (api.Exit, error) {
	e, err := m.lookup(ref)
	if err != nil {
		return api.Exit{}, err
	}
	return m.end(ctx, e)
}

// end waits for the end of a container and returns how it was.
func (m *Manager) end(ctx context.Context, e *entry) (api.Exit, error) {
	select {
	case <-e.exited:
	case <-ctx.Done():
		return api.Exit{}, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.info.Exit.Code == unknownExitCode && e.info.Reason != "" {
		return e.info.Exit, fmt.Errorf("%w: container %q ended unseen: %s", errs.ErrUnavailable, e.info.Name, e.info.Reason)
	}
	return e.info.Exit, nil
}

// Kill sends a signal to the process of a running container.
func (m *Manager) Kill(ctx context.Context, ref, signal string) error {
	e, err := m.lookup(ref)
	if err != nil {
		return err
	}
	if err := m.expect(e, ref, StateRunning, "only a running container takes signals"); err != nil {
		return err
	}
	return e.machine.Agent().Kill(ctx, api.KillRequest{ID: e.info.ID, Signal: first(signal, "KILL")})
}

// Remove removes a container and what it wrote. A running one is ErrConflict, unless force kills it.
func (m *Manager) Remove(ctx context.Context, ref string, force bool) error {
	e, err := m.lookup(ref)
	if err != nil {
		return err
	}
	return m.remove(ctx, e, ref, force)
}

func (m *Manager) remove(ctx context.Context, e *entry, ref string, force bool) error {
	unlock, err := e.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	state := e.info.State
	m.mu.Unlock()
	if state == StateRunning && !force {
		return fmt.Errorf("%w: container %q is running: kill it first, or force the removal", errs.ErrConflict, ref)
	}
	select {
	case <-e.machine.Done(): // and what the container wrote with it
	default:
		err := e.machine.Agent().Remove(ctx, api.RemoveRequest{ID: e.info.ID, Force: force})
		if err != nil && !errors.Is(err, errs.ErrNotFound) && !isDone(e.machine.Done()) {
			return err
		}
	}
	m.mu.Lock()
	m.markExited(e, api.Exit{Code: 128 + 9, Signal: "KILL"}, "removed while it ran")
	delete(m.entries, e.info.ID)
	delete(m.names, e.info.Name)
	info := e.info.clone()
	close(e.gone)
	m.mu.Unlock()
	e.release()
	m.publish(event.ContainerRemoved, info)
	return nil
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// HandleEvent takes what a machine's guest reports.
func (m *Manager) HandleEvent(ev api.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch ev.Kind {
	case api.EventExit:
		if e := m.entries[ev.ID]; e != nil {
			m.markExited(e, ev.Exit, "")
		}
	case api.EventLost:
		for _, e := range m.entries {
			if e.info.State == StateRunning && !m.closed {
				m.wg.Go(func() { m.ask(e) })
			}
		}
	}
}

// ask learns the end of a container from the agent itself: its event may have been lost.
func (m *Manager) ask(e *entry) {
	rep, err := e.machine.Agent().Wait(m.ctx, api.WaitRequest{ID: e.info.ID})
	if err != nil {
		return // removed meanwhile, or the machine has ended, which HandleEnd tells
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.markExited(e, rep.Exit, "")
}

// HandleEnd records that a machine has ended and its containers with it. Call it after the machine's Done is closed and
// its last event was handled.
func (m *Manager) HandleEnd(mach Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.machine == mach {
			m.markExited(e, api.Exit{Code: unknownExitCode}, machineGone(mach))
		}
	}
}

func machineGone(mach Machine) string {
	if err := mach.Err(); err != nil {
		return fmt.Sprintf("its machine ended: %v", err)
	}
	return "its machine was stopped"
}

// markExited records the end of a container, tells the waiters and the subscribers, and removes the container where it
// asked for that. The caller holds mu. A second call does nothing.
func (m *Manager) markExited(e *entry, exit api.Exit, reason string) {
	if !e.info.to(StateExited) {
		return
	}
	e.info.Exit, e.info.Reason, e.info.PID, e.info.Finished = exit, reason, 0, time.Now()
	close(e.exited)
	m.publish(event.ContainerExited, e.info.clone())
	if isDone(e.machine.Done()) {
		e.release()
	}
	if e.info.AutoRemove && !m.closed {
		m.wg.Go(func() {
			if err := m.remove(m.ctx, e, e.info.ID, true); err != nil && !errors.Is(err, errs.ErrNotFound) && m.ctx.Err() == nil {
				m.cfg.Logger.Warn("remove container after its exit", "id", e.info.ID, "err", err)
			}
		})
	}
}

// publish tells the subscribers what happened to a container.
func (m *Manager) publish(kind event.Kind, i Info) {
	e := event.Event{Kind: kind, ID: i.ID, Name: i.Name, Image: i.Image, Machine: i.Machine}
	if kind == event.ContainerExited {
		e.Attributes = map[string]string{event.AttrExitCode: strconv.Itoa(i.Exit.Code)}
		if i.Exit.Signal != "" {
			e.Attributes[event.AttrSignal] = i.Exit.Signal
		}
		if i.Reason != "" {
			e.Attributes[event.AttrError] = i.Reason
		}
	}
	m.cfg.Events.Publish(e)
}
