package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/socket"
)

// PublishSocket asks for a Unix socket on the host that leads to one of the container.
type PublishSocket struct {
	HostPath      string `json:"host_path"`
	ContainerPath string `json:"container_path"` // absolute, or '@' and the rest of an abstract name
}

const maxSockets = 64

func checkSockets(s Spec) error {
	if len(s.Sockets) > maxSockets {
		return fmt.Errorf("%w: %d published sockets, at most %d", errs.ErrInvalid, len(s.Sockets), maxSockets)
	}
	seen := make(map[string]bool)
	for _, p := range s.Sockets {
		if err := socket.CheckPath(p.HostPath); err != nil {
			return err
		}
		at := p.ContainerPath
		if !strings.HasPrefix(at, "/") && (len(at) < 2 || at[0] != '@') || len(at) >= maxPath || strings.ContainsRune(at, 0) {
			return invalid("path of a socket in the container", clip(at), `use an absolute path, or "@" and the rest of an abstract name`)
		}
		if seen[p.HostPath] {
			return fmt.Errorf("socket %s: %w: it is published twice", p.HostPath, errs.ErrInvalid)
		}
		seen[p.HostPath] = true
	}
	return nil
}

// publishSockets opens the sockets of a container that is about to be started, all or none.
func (m *Manager) publishSockets(e *entry, mach Machine, want []PublishSocket) (all []*socket.Published, err error) {
	defer func() {
		if err != nil {
			closeSockets(all)
		}
	}()
	for _, w := range want {
		p, err := socket.Publish(w.HostPath, func(ctx context.Context) (net.Conn, error) {
			return mach.Agent().DialContainer(ctx, api.DialRequest{ID: e.id, Network: "unix", Address: w.ContainerPath})
		}, m.cfg.Logger)
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

func closeSockets(all []*socket.Published) {
	for _, p := range all {
		p.Close()
	}
}

// adoptSockets is publishSockets for a container of a machine that goes on from another one, which may have the paths.
func (m *Manager) adoptSockets(e *entry, mach Machine) []*socket.Published {
	var all []*socket.Published
	for _, w := range e.info.Spec.Sockets {
		some, err := m.publishSockets(e, mach, []PublishSocket{w})
		if err != nil && !errors.Is(err, errs.ErrConflict) {
			m.cfg.Logger.Warn("publish the socket of a container that goes on", "container", e.info.Name, "err", err)
		}
		all = append(all, some...)
	}
	return all
}
