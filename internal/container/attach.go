package container

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Attachment is a connection to the stdio of a container.
type Attachment struct {
	*agent.Process
	m *Manager
	e *entry
}

// Attach connects to the stdio of a container that has not exited.
func (m *Manager) Attach(ctx context.Context, ref string, stdin bool, stdout, stderr io.Writer) (*Attachment, error) {
	e, err := m.lookup(ref)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	info := e.info
	m.mu.Unlock()
	if info.State == StateExited {
		return nil, fmt.Errorf("%w: container %q has exited", errs.ErrConflict, ref)
	}
	if stdin && !info.Stdin {
		return nil, fmt.Errorf("%w: container %q was made without a stdin", errs.ErrConflict, ref)
	}
	p, err := e.machine.Agent().Attach(ctx, api.AttachRequest{ID: info.ID, Stdin: stdin}, stdout, stderr)
	if err != nil {
		return nil, err
	}
	return &Attachment{Process: p, m: m, e: e}, nil
}

// ID returns the id of the container.
func (a *Attachment) ID() string { return a.e.info.ID } // never changes

// Wait waits until the process has ended, all its output was written, and the record of the container says so.
func (a *Attachment) Wait(ctx context.Context) (api.Exit, error) {
	_, err := a.Process.Wait(ctx)
	// A connection that was lost means that the machine ends or has ended, and the record will tell why.
	if err != nil && !errors.Is(err, errs.ErrUnavailable) {
		return api.Exit{}, err
	}
	return a.m.end(ctx, a.e)
}
