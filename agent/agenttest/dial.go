package agenttest

import (
	"context"
	"net"
	"net/netip"

	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

var _ engine.Dialer = (*sandbox)(nil)

// Dial implements engine.Dialer: the network of all containers is that of the test.
func (s *sandbox) Dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, a.String())
}
