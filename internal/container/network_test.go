package container

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/network"
)

func TestNameserverOfTheWayOutIsFirst(t *testing.T) {
	a := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	all := []network.Interface{
		{DNS: a("10.0.0.1")}, {DNS: a("10.0.1.1"), Gateways: a("10.0.1.1")}, {DNS: a("10.0.2.1")}, {DNS: a("10.0.3.1")},
	}
	require.Equal(t, []string{"10.0.1.1", "10.0.0.1", "10.0.2.1"}, nameservers(all))
	require.Empty(t, nameservers(nil))
}
