package box

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// visitor is a process in the machine itself. It is a container's but for its namespaces.
type visitor struct{ *sandbox }

var _ engine.Process = visitor{}

// Exec implements engine.Backend.
func (b *Box) Exec(ctx context.Context, req api.ExecRequest) (engine.Process, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read the machine's name: %w", err)
	}
	s, err := b.create(ctx, api.CreateRequest{
		ID: "machine-" + req.ExecID, Layers: req.Layers, Process: req.Process, Privileged: true, Hostname: host,
		Network: api.Network{Mode: api.NetworkMachine},
	}, true)
	if err != nil {
		return nil, err
	}
	if _, err := s.Start(ctx); err != nil {
		s.ends.closeAgent()
		return nil, errors.Join(err, s.Remove(engine.DeleteData))
	}
	return visitor{s}, nil
}

// PID implements engine.Process.
func (v visitor) PID() int { return v.child.PID() }

// Kill implements engine.Process.
func (v visitor) Kill() error { return v.cgroup.kill() }

// Release implements engine.Process.
func (v visitor) Release() { _ = v.Remove(engine.DeleteData) } // what stays of it goes with the machine
