package machine

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Pause stops the machine's processors. Its memory and its streams stay, and calls to the agent wait. A machine that is
// paused stays so. A driver that cannot is ErrUnsupported.
func (m *Machine) Pause(ctx context.Context) error {
	p, ok := m.inst.(vm.Pauser)
	if !ok {
		return fmt.Errorf("pause machine %s: driver %s: %w", m.cfg.Name, m.cfg.Driver.Name(), errs.ErrUnsupported)
	}
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if err := p.Pause(ctx); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.cfg.Name, err)
	}
	m.paused, m.pauses = true, m.pauses+1
	return nil
}

// Resume lets a paused machine go on, and gives it the time of now. A machine that runs goes on running.
func (m *Machine) Resume(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if !m.paused {
		return nil
	}
	p, ok := m.inst.(vm.Pauser)
	if !ok {
		return fmt.Errorf("resume machine %s: driver %s: %w", m.cfg.Name, m.cfg.Driver.Name(), errs.ErrUnsupported)
	}
	if err := p.Resume(ctx); err != nil {
		return fmt.Errorf("resume machine %s: %w", m.cfg.Name, err)
	}
	m.paused = false
	return m.agent.Configure(ctx, api.ConfigureRequest{Time: time.Now()})
}

// Dial opens a stream to a port of the guest. See vm.Instance.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.inst.Dial(ctx, port)
}

// ConsoleTail returns the last lines of the guest's console where the driver keeps them.
func (m *Machine) ConsoleTail() string {
	if c, ok := m.inst.(vm.ConsoleTailer); ok {
		return c.ConsoleTail()
	}
	return ""
}
