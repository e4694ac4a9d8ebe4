package arcbox_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// TestIPv6 goes from a container by IPv6 to the outside, to a service of the host, and the other way round.
func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	needs.Support(t, err) // a host may have no IPv6 at all
	rt := shared.get(t)
	ctx := testContext(t)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "by ", r.Host) })}}
	srv.Start()
	defer srv.Close()
	flows := make(chan arcbox.NetworkFlow, 1)
	n := newNetwork(t, rt, arcbox.NetworkSpec{
		Name: "six", IPv6: true, Services: map[uint16]string{8000: l.Addr().String()},
		Hosts:  map[string][]netip.Addr{"six.example": {netip.MustParseAddr("2001:db8::1")}},
		Egress: []arcbox.EgressRule{{Host: "2001:db8::/32", Protocol: "tcp"}, {Deny: true}},
		Dial: func(ctx context.Context, f arcbox.NetworkFlow) (net.Conn, error) {
			flows <- f
			var d net.Dialer
			return d.DialContext(ctx, "tcp6", l.Addr().String())
		},
	})
	require.True(t, n.Spec.Subnet6.IsValid())
	w := start(t, rt, web("six-web", arcbox.ContainerSpec{
		Networks: []arcbox.NetworkAttachment{{Network: "six"}}, Ports: []arcbox.PortMapping{{ContainerPort: 80, HostIP: netip.IPv6Loopback()}},
	}))
	require.NoError(t, rt.WaitFor(ctx, w.ID, arcbox.ForListeningPort(80)))
	for url, want := range map[string]string{
		"http://six.example/":      "by six.example",
		"http://[2001:db8::1]:80/": "by [2001:db8::1]:80",
	} {
		out, _ := in(t, rt, w.ID, "timeout 20 wget -q -O - "+url)
		require.Equal(t, want, out)
		require.Equal(t, "[2001:db8::1]:80", (<-flows).Destination.String())
	}
	out, code := in(t, rt, w.ID, `gw=$(ip -6 route show default | awk '{print $3}'); ping -6 -c 1 -W 5 $gw >/dev/null && timeout 20 wget -q -O - "http://[$gw]:8000/" && timeout 20 nslookup six-web $gw`)
	require.Zero(t, code, out)
	require.Contains(t, out, "by [")
	require.Contains(t, out, w.Networks[0].IPv6.String())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	require.Equal(t, "page of six-web\n", get(t, client, fmt.Sprintf("http://[::1]:%d/", w.Ports[0].HostPort)))
	conn, err := rt.Dial(ctx, w.ID, "tcp6", ":80")
	require.NoError(t, err)
	conn.Close()
	_, code = in(t, rt, w.ID, "timeout 20 wget -q -O - http://[2001:db9::1]/")
	require.NotZero(t, code)
}

// TestPingToTheOutside asks for echoes by the host's own ICMP sockets, where that may open them. What is not allowed is told at
// once.
func TestPingToTheOutside(t *testing.T) {
	rt := shared.get(t)
	host := ownAddress(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "ping", IPv6: true, Egress: []arcbox.EgressRule{{Host: host.String()}, {Deny: true}}})
	const script = `
import socket, struct, sys
def ping(to):
    six = ":" in to
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1); s.settimeout(30); s.connect((to, 0))
    m = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1) + b"data"
    if not six:
        n = sum(struct.unpack("!6H", m)); n = (n >> 16) + (n & 0xffff); m = m[:2] + struct.pack("!H", ~(n + (n >> 16)) & 0xffff) + m[4:]
    s.send(m)
    try:
        while True:
            r = s.recv(2000)
            if r.endswith(b"data") and r[0 if six else 20] in (0, 129): return "answered"
    except OSError as e: return e.errno
print(*[ping(a) for a in sys.argv[1:]])
`
	r := run(t, rt, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), Networks: []arcbox.NetworkAttachment{{Network: "ping"}},
		Args: []string{"python3", "-S", "-c", script, "203.0.113.1", "2001:db8::1", host.String()},
	}, arcbox.RunOptions{})
	const unreachable, denied = "113", "13" // of the guest
	require.Contains(t, []string{unreachable + " " + denied + " answered\n", unreachable + " " + denied + " " + unreachable + "\n"}, r.stdout, r.stderr)
	if host != nobody() && pingsAllowed() {
		require.Contains(t, r.stdout, "answered")
	}
}

// ownAddress returns an address of the host that is not its loopback one, or that of nobody.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr()
		}
	}
	return nobody()
}

func nobody() netip.Addr { return netip.MustParseAddr("203.0.113.2") }

// pingsAllowed tells whether this user may open ICMP sockets of any kind.
func pingsAllowed() bool {
	c, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
	if err == nil {
		c.Close()
	}
	return err == nil
}
