package container

import (
	"context"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// restartLater starts a container again after a while. The caller holds mu and has set StateRestarting.
func (m *Manager) restartLater(e *entry, ran time.Duration) {
	e.backoff = nextBackoff(e.backoff, ran)
	e.info.RestartCount++
	ctx, cancel := context.WithCancel(m.ctx)
	e.cancelRestart = cancel
	wait := e.backoff
	m.wg.Go(func() {
		defer cancel()
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
			m.restart(ctx, e)
		case <-ctx.Done():
		}
	})
}

// restart is what a container's policy asked for, where nobody has decided otherwise meanwhile.
func (m *Manager) restart(ctx context.Context, e *entry) {
	unlock, err := e.lock(ctx, e.id)
	if err != nil {
		return
	}
	defer unlock()
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	e.run = newRun()
	m.mu.Unlock()
	err = m.start(ctx, e)
	if err == nil {
		return
	}
	m.cfg.Logger.Debug("restart container", "id", e.id, "err", err)
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil { // it was given up: the last end stays what it was
		if !isDone(e.run.done) {
			e.run.exit, e.run.err = e.info.Exit, e.unseen()
			close(e.run.done)
		}
		return
	}
	// An end by the policy's own rule: without a machine the next try may be luckier.
	m.ended(e, ending{exit: api.Exit{Code: unknownExitCode}, reason: fmt.Sprintf("restart: %v", err)})
}

// giveUpRestart ends the wait for a restart, or the restart. The caller holds mu, and the state is StateRestarting.
func (m *Manager) giveUpRestart(e *entry) {
	e.cancelRestart()
	e.info.to(StateExited)
	e.relax()
	m.touch(e)
}
