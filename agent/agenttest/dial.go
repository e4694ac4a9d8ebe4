package agenttest

import (
	"context"
	"net"
	"path/filepath"

	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

var (
	_ engine.Dialer   = (*sandbox)(nil)
	_ engine.Listener = (*backend)(nil)
)

// Dial implements engine.Dialer: the network of all containers is that of the test, and so are their files.
func (s *sandbox) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// Listen implements engine.Listener. The socket is where Agent.Socket says.
func (b *backend) Listen(_ context.Context, id string) (net.Listener, error) {
	if err := b.makeDir(id); err != nil {
		return nil, err
	}
	return net.Listen("unix", b.socket(id))
}

func (b *backend) socket(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return filepath.Join(b.dir, id, "s")
}

// Socket returns the path of a socket that the host offers to containers, by its id. It is there while the host listens.
func (a *Agent) Socket(id string) string { return a.backend.socket(id) }
