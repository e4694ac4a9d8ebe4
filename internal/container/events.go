package container

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// ending is how a run ended.
type ending struct {
	exit   api.Exit
	at     time.Time // by the guest's clock; zero where the guest did not tell
	reason string    // where it was not by itself
	final  bool      // no policy starts it again
}

// HandleEvent takes what a machine's guest reports.
func (m *Manager) HandleEvent(ev api.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[ev.ID]
	switch {
	case ev.Kind == api.EventLost:
		for _, e := range m.entries {
			if (e.info.State == StateRunning || e.info.State == StatePaused) && e.inst != nil && !m.closed {
				m.wg.Go(func() { m.ask(e, e.run, e.inst.machine.Agent()) })
			}
		}
	case e == nil:
	case ev.Kind == api.EventExit:
		m.report(e, ending{exit: ev.Exit, at: ev.At})
	case ev.Kind == api.EventOOM:
		m.publish(event.ContainerOOM, e.info, nil)
	}
}

// report takes the end of a container's run, at once or when the guest has answered that it was started. The caller holds
// mu.
func (m *Manager) report(e *entry, en ending) {
	switch {
	case !en.at.IsZero() && en.at.Equal(e.lastEnd): // of the run before, which was learnt in another way
	case e.starting:
		e.early = &en
	default:
		m.ended(e, en)
	}
}

// ask learns the end of a container from the agent itself: its event may have been lost.
func (m *Manager) ask(e *entry, r *run, a Agent) {
	rep, err := a.Wait(m.ctx, api.WaitRequest{ID: e.id})
	if err != nil {
		return // removed meanwhile, or the machine has ended, which HandleEnd tells
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.run == r {
		m.report(e, ending{exit: rep.Exit, at: rep.At})
	}
}

// HandleEnd records that a machine has ended and the processes in it with it. Call it after the machine's Done is closed
// and its last event was handled. A machine that was stopped in an orderly way is not started again by a restart policy.
func (m *Manager) HandleEnd(mach Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.inst == nil || e.inst.machine != mach {
			continue
		}
		e.drop()
		en := ending{exit: api.Exit{Code: unknownExitCode}, reason: machineGone(mach), final: mach.Err() == nil}
		switch {
		case e.starting && e.early == nil:
			e.early = &en
		case e.info.State == StateRunning, e.info.State == StatePaused, e.info.State == StateRemoving && e.prior.live():
			m.ended(e, en)
		}
	}
}

func machineGone(mach Machine) string {
	if err := mach.Err(); err != nil {
		return fmt.Sprintf("its machine ended: %v", err)
	}
	return "its machine was stopped"
}

// ended records the end of a run, tells the waiters and the subscribers, and does what the container asked for: restart
// or removal. The caller holds mu. A second call for one run does nothing.
func (m *Manager) ended(e *entry, en ending) {
	if isDone(e.run.done) {
		return
	}
	i := &e.info
	now := time.Now()
	var ran time.Duration
	if i.State == StateRunning || i.State == StatePaused {
		ran = now.Sub(i.Started)
	}
	m.goOffline(e)
	i.Exit, i.Reason, i.PID, i.Finished = en.exit, en.reason, 0, now
	again := !en.final && !e.stopped && !m.closed && i.State != StateRemoving && i.Spec.Restart.again(en.exit, i.RestartCount)
	switch {
	case i.State == StateRemoving:
		e.prior = StateExited
	case again:
		i.to(StateRestarting)
	default:
		i.to(StateExited)
	}
	e.lastEnd = en.at
	e.run.exit, e.run.err = en.exit, e.unseen()
	e.ends++
	m.publishExit(*i)
	if again {
		m.restartLater(e, ran)
	} else {
		e.relax()
	}
	m.touch(e)
	close(e.run.done)
	if i.State == StateExited && i.Spec.AutoRemove && !m.closed {
		m.wg.Go(func() {
			if err := m.remove(m.ctx, e, e.id, removal{force: true, volumes: true}); err != nil && !errors.Is(err, errs.ErrNotFound) && m.ctx.Err() == nil {
				m.cfg.Logger.Warn("remove container after its exit", "id", e.id, "err", err)
			}
		})
	}
}

func (m *Manager) publishExit(i Info) {
	more := map[string]string{event.AttrExitCode: strconv.Itoa(i.Exit.Code)}
	if i.Exit.Signal != "" {
		more[event.AttrSignal] = i.Exit.Signal
	}
	if i.Reason != "" {
		more[event.AttrError] = i.Reason
	}
	m.publish(event.ContainerExited, i, more)
}

// publish tells the subscribers what happened to a container.
func (m *Manager) publish(kind event.Kind, i Info, more map[string]string) {
	m.cfg.Events.Publish(event.Event{
		Kind: kind, ID: i.ID, Name: i.Name, Image: i.Image, Machine: i.Machine, Attributes: maps.Clone(more),
	})
}
