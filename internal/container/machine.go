package container

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// ExecMachine executes a command in a machine itself, which is started where it does not run and held until the process
// has ended. The root is that of an image, which is needed as long.
func (m *Manager) ExecMachine(ctx context.Context, machine, ref string, s ExecSpec, stdout, stderr io.Writer) (_ *Execution, err error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	x := &execution{id: newID(), spec: s}
	img, err := m.cfg.Images.Use(ctx, ref, image.User{ID: x.id, Name: "a process in machine " + machine, Group: machine})
	if err != nil {
		return nil, err
	}
	end := func() { m.cfg.Images.Unuse(x.id) }
	defer func() {
		if err != nil {
			end()
		}
	}()
	disks, mach, release, err := m.gather(ctx, machine, img)
	if err != nil {
		return nil, err
	}
	end = sync.OnceFunc(func() {
		m.cfg.Images.Unuse(x.id)
		release()
	})
	req := api.ExecRequest{
		ExecID: x.id, Privileged: true,
		Process: execProcess(api.Process{Env: mergeEnv([]string{defaultPath}, img.Config.Env), Cwd: "/"}, s),
	}
	req.Process.Capabilities = allCapabilities()
	if req.Layers, err = mach.AttachLayers(ctx, disks); err != nil {
		return nil, err
	}
	a := mach.Agent()
	p, err := a.Exec(ctx, req, stdout, stderr)
	if err != nil {
		return nil, err
	}
	if err = m.attend(p, end); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("exec in machine %s: %w", machine, err)
	}
	return &Execution{Process: p, m: m, x: x, agent: a}, nil
}

// attend calls end when a process has ended. Close ends it.
func (m *Manager) attend(p *agent.Process, end func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errs.ErrClosed
	}
	m.wg.Go(func() {
		defer end()
		select {
		case <-p.Done():
		case <-m.ctx.Done():
			_ = p.Close()
		}
	})
	return nil
}
