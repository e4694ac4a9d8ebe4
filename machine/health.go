package machine

import (
	"context"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// watchHealth asks the agent again and again whether it answers, and ends the machine when it does not. A paused machine
// is not asked.
func (m *Machine) watchHealth() {
	tick := time.NewTicker(m.cfg.HealthInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.ctx.Done():
			return
		}
		pauses, paused := m.pauseCount()
		if paused || m.answers() || m.ctx.Err() != nil {
			continue
		}
		if now, _ := m.pauseCount(); now != pauses {
			continue // it was paused meanwhile
		}
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return // it is being shut down, and has a time of its own for that
		}
		m.err = fmt.Errorf("machine %s: %w: its agent has not answered for %s", m.cfg.Name, errs.ErrUnavailable, m.cfg.HealthTimeout)
		m.mu.Unlock()
		m.cfg.Logger.Warn("the agent does not answer and the machine is ended", "machine", m.cfg.Name, "timeout", m.cfg.HealthTimeout)
		m.inst.Close()
		return
	}
}

// answers tells whether the agent has answered in time. An error that comes sooner says that the machine is ending.
func (m *Machine) answers() bool {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.HealthTimeout)
	defer cancel()
	_, err := m.agent.Ping(ctx)
	return err == nil || ctx.Err() == nil
}

// pauseCount returns how often the machine was paused and whether it is now. It waits for a pause that is under way.
func (m *Machine) pauseCount() (n int, paused bool) {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	return m.pauses, m.paused
}
