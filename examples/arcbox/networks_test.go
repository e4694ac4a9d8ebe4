package main

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

func TestPublishFlag(t *testing.T) {
	for text, want := range map[string]arcbox.PortMapping{
		"80":                  {ContainerPort: 80, Count: 1},
		"8080:80":             {HostPort: 8080, ContainerPort: 80, Count: 1},
		"8080:80/udp":         {HostPort: 8080, ContainerPort: 80, Count: 1, Protocol: "udp"},
		"0.0.0.0:8080:80":     {HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8080, ContainerPort: 80, Count: 1},
		"[::1]::80":           {HostIP: netip.MustParseAddr("::1"), ContainerPort: 80, Count: 1},
		"8000-8002:9000-9002": {HostPort: 8000, ContainerPort: 9000, Count: 3},
		"127.0.0.1:0:80":      {HostIP: netip.MustParseAddr("127.0.0.1"), ContainerPort: 80, Count: 1},
	} {
		got, err := publishFlag(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, bad := range []string{"", "x", "8080:", "1-3:1-2", "3-1", "99999", "a:1:2", "80:80:80:80"} {
		_, err := publishFlag(bad)
		require.Error(t, err, bad)
	}
}

func TestPublishSocketFlag(t *testing.T) {
	var s arcbox.ContainerSpec
	require.NoError(t, networkFlags{publish: []string{"/tmp/x.sock:/run/y.sock", "80"}}.apply(&s))
	require.Equal(t, []arcbox.SocketMapping{{HostPath: "/tmp/x.sock", ContainerPath: "/run/y.sock"}}, s.Sockets)
	require.Len(t, s.Ports, 1)
	require.Error(t, networkFlags{publish: []string{"/tmp/x.sock"}}.apply(&s))
}

func TestNetworkFlags(t *testing.T) {
	var s arcbox.ContainerSpec
	require.NoError(t, networkFlags{networks: []string{"a", "b"}, aliases: []string{"x"}, ip: "10.0.0.2"}.apply(&s))
	require.Equal(t, []arcbox.NetworkAttachment{{Network: "a", Aliases: []string{"x"}, IPv4: netip.MustParseAddr("10.0.0.2")}, {Network: "b"}}, s.Networks)
	s = arcbox.ContainerSpec{}
	require.NoError(t, networkFlags{networks: []string{"none"}}.apply(&s))
	require.Equal(t, "none", s.Network)
	require.Error(t, networkFlags{networks: []string{"none", "a"}}.apply(&s))
	require.Error(t, networkFlags{networks: []string{"none"}, ip: "10.0.0.2"}.apply(&s))
}
