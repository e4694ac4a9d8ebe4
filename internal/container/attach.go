package container

import (
	"context"
	"errors"
	"io"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Attachment is a connection to the stdio of a container.
type Attachment struct {
	*agent.Process
	m   *Manager
	e   *entry
	run *run
}

// Attach connects to the stdio of a container that was created or runs.
func (m *Manager) Attach(ctx context.Context, ref string, stdin bool, stdout, stderr io.Writer) (*Attachment, error) {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	state := e.info.State
	if state != StateCreated && state != StateRunning && state != StatePaused {
		defer m.mu.Unlock()
		return nil, e.conflict("attach", "it has no process")
	}
	if stdin && !e.info.Spec.Stdin {
		defer m.mu.Unlock()
		return nil, e.conflict("attach", "it was made without a stdin")
	}
	inst := e.inst
	m.mu.Unlock()
	if inst == nil { // its machine was stopped before its start
		_, _, release, err := m.Open(ctx, e.id)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	m.mu.Lock()
	if e.inst == nil {
		defer m.mu.Unlock()
		return nil, e.conflict("attach", "it has no process")
	}
	a, r := e.inst.machine.Agent(), e.run
	m.mu.Unlock()
	p, err := a.Attach(ctx, api.AttachRequest{ID: e.id, Stdin: stdin}, stdout, stderr)
	if err != nil {
		return nil, err
	}
	return &Attachment{Process: p, m: m, e: e, run: r}, nil
}

// ID returns the id of the container.
func (a *Attachment) ID() string { return a.e.id }

// ContainerID returns the id of the container.
func (a *Attachment) ContainerID() string { return a.e.id }

// Signal sends a signal to the process, as Manager.Kill does.
func (a *Attachment) Signal(ctx context.Context, signal string) error {
	return a.m.Kill(ctx, a.e.id, signal)
}

// Wait waits until the process has ended, all its output was written, and the record of the container says so.
func (a *Attachment) Wait(ctx context.Context) (api.Exit, error) {
	_, err := a.Process.Wait(ctx)
	// A connection that was lost means that the machine ends or has ended, and the record will tell why.
	if err != nil && !errors.Is(err, errs.ErrUnavailable) {
		return api.Exit{}, err
	}
	if err := waitRun(ctx, a.run, -1); err != nil {
		return api.Exit{}, err
	}
	a.m.settle(a.e)
	return a.run.exit, a.run.err
}
