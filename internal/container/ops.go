package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Agent is what the manager asks of the guest.
type Agent interface {
	FileAgent
	Create(context.Context, api.CreateRequest) error
	Start(context.Context, api.StartRequest) (api.StartReply, error)
	Kill(context.Context, api.KillRequest) error
	Pause(context.Context, api.PauseRequest) error
	Update(context.Context, api.UpdateRequest) error
	SetNetwork(context.Context, api.SetNetworkRequest) error
	Remove(context.Context, api.RemoveRequest) error
	Wait(context.Context, api.WaitRequest) (api.WaitReply, error)
	Attach(ctx context.Context, req api.AttachRequest, stdout, stderr io.Writer) (*agent.Process, error)
	Exec(ctx context.Context, req api.ExecRequest, stdout, stderr io.Writer) (*agent.Process, error)
	ExecInspect(context.Context, api.ExecInspectRequest) (api.ExecInspectReply, error)
	Logs(context.Context, api.LogsRequest) (*agent.Logs, error)
	Stats(context.Context, api.StatsRequest) (api.StatsReply, error)
	Top(context.Context, api.TopRequest) (api.TopReply, error)
	DialContainer(context.Context, api.DialRequest) (net.Conn, error)
}

// Start starts a container that was created or has exited. A command that cannot be executed is an error, and the
// container has exited then.
func (m *Manager) Start(ctx context.Context, ref string) error {
	e, unlock, err := m.begin(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	switch e.info.State {
	case StateRestarting:
		m.giveUpRestart(e)
	case StateCreated, StateExited:
	default:
		defer m.mu.Unlock()
		return e.conflict("start container", "only one that was created or has exited is started")
	}
	e.stopped, e.backoff, e.info.RestartCount = false, 0, 0
	m.mu.Unlock()
	defer m.settle(e)
	return m.start(ctx, e)
}

// start starts the process of a container that has none. The caller holds op.
func (m *Manager) start(ctx context.Context, e *entry) error {
	inst, err := m.fresh(ctx, e)
	if err != nil {
		return err
	}
	if err := m.claim(ctx, e); err != nil {
		return err
	}
	if err := m.goOnline(e, inst); err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mark(e)
		return err
	}
	m.mu.Lock()
	if isDone(e.run.done) {
		e.run = newRun()
	}
	inst.used, e.starting, e.early = true, true, nil
	m.mu.Unlock()
	rep, err := inst.machine.Agent().Start(ctx, api.StartRequest{ID: e.id})
	m.mu.Lock()
	defer m.mu.Unlock()
	e.starting = false
	if err != nil && e.early == nil {
		m.goOffline(e)
	}
	if code := ExitCode(err); code != 0 {
		m.ended(e, ending{exit: api.Exit{Code: code}, reason: err.Error(), final: true})
		return err
	}
	if err != nil { // the guest's event tells if it runs after all
		if e.early != nil {
			m.ended(e, *e.early)
		}
		m.mark(e)
		return err
	}
	e.info.to(StateRunning)
	e.info.Started, e.info.PID, e.info.Reason = time.Now(), rep.PID, ""
	m.publish(event.ContainerStarted, e.info, nil)
	if e.early != nil {
		m.ended(e, *e.early)
		return nil
	}
	m.watchHealth(e)
	m.touch(e)
	return nil
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

// Condition is what Wait waits for.
type Condition string

// The conditions.
const (
	WaitNotRunning Condition = ""          // the container has exited and is not started again by its policy
	WaitNextExit   Condition = "next-exit" // its process ends, from now on
	WaitRemoved    Condition = "removed"
)

// Wait waits until the condition holds and returns how the container's process ended last. Of a container that was
// removed meanwhile it tells that too.
func (m *Manager) Wait(ctx context.Context, ref string, c Condition) (api.Exit, error) {
	switch c {
	case WaitNotRunning, WaitNextExit, WaitRemoved:
	default:
		return api.Exit{}, invalid("condition to wait for", clip(string(c)), "use next-exit, removed, or none")
	}
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return api.Exit{}, err
	}
	defer m.settle(e)
	m.mu.Lock()
	defer m.mu.Unlock()
	for before := e.ends; !e.fulfils(c, before); {
		changed := e.changed
		m.mu.Unlock()
		select {
		case <-changed:
			err = nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-m.ctx.Done():
			err = errs.ErrClosed
		}
		m.mu.Lock()
		if err != nil {
			return api.Exit{}, err
		}
	}
	return e.info.Exit, e.unseen()
}

func (e *entry) fulfils(c Condition, endsBefore int) bool {
	switch {
	case isDone(e.gone):
		return true
	case c == WaitNextExit:
		return e.ends > endsBefore
	case c == WaitRemoved:
		return false
	}
	return e.info.State == StateExited || e.info.State == StateDead
}

// unseen is the error of a container whose end nobody saw.
func (e *entry) unseen() error {
	if e.info.Exit.Code == unknownExitCode && e.info.Reason != "" {
		return fmt.Errorf("%w: container %q ended unseen: %s", errs.ErrUnavailable, e.info.Name, e.info.Reason)
	}
	return nil
}

// Kill sends a signal to the process of a running container. KILL and the container's stop signal mean that it shall end:
// its restart policy does not apply then.
func (m *Manager) Kill(ctx context.Context, ref, signal string) error {
	signal = first(signal, "KILL")
	if err := CheckSignal(signal); err != nil {
		return err
	}
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if st := e.info.State; st != StateRunning && st != StatePaused || e.inst == nil {
		defer m.mu.Unlock()
		return e.conflict("signal container", "only a running one takes signals")
	}
	was, r, a := e.stopped, e.run, e.inst.machine.Agent()
	e.stopped = was || sameSignal(signal, "KILL") || sameSignal(signal, e.info.StopSignal)
	m.mu.Unlock()
	if err := a.Kill(ctx, api.KillRequest{ID: e.id, Signal: signal}); err != nil {
		m.mu.Lock()
		if e.run == r && !was {
			e.stopped = false
		}
		m.mu.Unlock()
		return err
	}
	return nil
}

// Remove removes a container and what it wrote. A running one is ErrConflict, unless force kills it.
func (m *Manager) Remove(ctx context.Context, ref string, force bool) error {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	return m.remove(ctx, e, ref, removal{force: force})
}

// RemoveWithVolumes is Remove, also of the anonymous volumes that no other container uses.
func (m *Manager) RemoveWithVolumes(ctx context.Context, ref string, force bool) error {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return err
	}
	return m.remove(ctx, e, ref, removal{force: force, volumes: true})
}

// removal says how a container is removed.
type removal struct{ force, volumes bool }

func (m *Manager) remove(ctx context.Context, e *entry, ref string, how removal) error {
	if err := m.removeNow(ctx, e, ref, how); err != nil {
		return err
	}
	return m.saved(e)
}

func (m *Manager) removeNow(ctx context.Context, e *entry, ref string, how removal) error {
	force := how.force
	m.mu.Lock()
	if force && e.info.State == StateRestarting {
		m.giveUpRestart(e) // before the wait for op, which a restart in progress has
	}
	m.mu.Unlock()
	unlock, err := e.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	if e.info.State.live() && !force {
		defer m.mu.Unlock()
		return e.conflict("remove container", "stop it first, or force the removal")
	}
	if e.info.State == StateRestarting {
		m.giveUpRestart(e)
	}
	stopped := e.stopped
	e.prior, e.stopped = e.info.State, true
	e.info.to(StateRemoving)
	inst := e.inst
	m.mu.Unlock()
	err = m.removeFromGuest(ctx, e, inst, force)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		e.info.to(e.prior)
		e.stopped = stopped
		m.touch(e)
		return err
	}
	m.forget(e, how.volumes || e.info.Spec.AutoRemove)
	return nil
}

// removeFromGuest removes what there is of a container in a running machine. What there is of it in a stopped one is
// swept when that next uses its disk.
func (m *Manager) removeFromGuest(ctx context.Context, e *entry, inst *instance, force bool) error {
	req := api.RemoveRequest{ID: e.id, Force: force}
	if inst == nil {
		if m.cfg.Current != nil {
			mach, err := m.cfg.Current(ctx, e.info.Machine)
			if err == nil && mach != nil {
				err = mach.Agent().Remove(ctx, req)
			}
			if err != nil && !errors.Is(err, errs.ErrNotFound) {
				m.cfg.Logger.Debug("remove what a container wrote", "id", e.id, "err", err)
			}
		}
		return nil
	}
	if isDone(inst.machine.Done()) {
		return nil
	}
	err := inst.machine.Agent().Remove(ctx, req)
	if err != nil && !errors.Is(err, errs.ErrNotFound) && !isDone(inst.machine.Done()) {
		return err
	}
	return nil
}

// forget ends all that there is of a container on the host, with its anonymous volumes where volumes is set. The caller
// holds mu.
func (m *Manager) forget(e *entry, volumes bool) {
	m.ended(e, ending{exit: api.Exit{Code: 128 + 9, Signal: "KILL"}, reason: "removed while it ran", final: true})
	delete(m.entries, e.id)
	delete(m.names, e.info.Name)
	m.cfg.Volumes.Release(e.id, volumes)
	m.releaseNetworks(e.id)
	m.cfg.Images.Unuse(e.id)
	e.drop()
	close(e.gone)
	m.publish(event.ContainerRemoved, e.info, nil)
	m.touch(e)
	if m.records != nil {
		m.records.remove(e.id)
	}
}
