package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// roundTrip sends a text over a connection, ends its direction, and expects it back.
func roundTrip(t testing.TB, c net.Conn, text string) {
	t.Helper()
	defer c.Close()
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, text, string(b))
}

// ask asks the DNS of a container.
func (g *guest) ask(name string, kind uint16) *dns.Msg {
	g.t.Helper()
	to := anyNIC(netip.AddrPortFrom(g.dns, dnsPort))
	c, err := gonet.DialUDP(g.stack, nil, &to, protocolOf(g.dns))
	require.NoError(g.t, err)
	defer c.Close()
	d := &dns.Conn{Conn: c}
	require.NoError(g.t, d.SetDeadline(time.Now().Add(testTimeout)))
	require.NoError(g.t, d.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)))
	m, err := d.ReadMsg()
	require.NoError(g.t, err)
	return m
}

func (g *guest) lookup(name string) (out []string) {
	g.t.Helper()
	for _, rr := range g.ask(name, dns.TypeA).Answer {
		out = append(out, rr.(*dns.A).A.String())
	}
	return out
}

func TestContainersReachEachOther(t *testing.T) {
	m := newManager(t, Config{})
	v1, v2 := newVM(t, m), newVM(t, m)
	a := startGuest(t, m, v1, "a", nil, onDefault)
	b := startGuest(t, m, v2, "b", nil, Attachment{Network: DefaultName, Aliases: []string{"DB"}})
	serve(t, b.listen(80), echoTo)
	ctx := testContext(t)
	c, err := a.dial(ctx, netip.AddrPortFrom(b.ip, 80))
	require.NoError(t, err)
	roundTrip(t, c, strings.Repeat("across machines ", 100000))
	for _, name := range []string{"b", "B", "db", "b.default", b.id[:12]} {
		require.Equal(t, []string{b.ip.String()}, a.lookup(name), name)
	}
	r, err := dns.ReverseAddr(b.ip.String())
	require.NoError(t, err)
	require.Equal(t, "b.", a.ask(r, dns.TypePTR).Answer[0].(*dns.PTR).Ptr)
	host, err := b.lease.Dial(ctx, "tcp", netip.Addr{}, 80)
	require.NoError(t, err)
	roundTrip(t, host, "from the host")
	b.stop()
	require.Empty(t, a.lookup("b"))
	_, err = b.lease.Dial(ctx, "tcp", netip.Addr{}, 80)
	require.ErrorIs(t, err, errs.ErrUnavailable)
}

func TestNetworksAreApart(t *testing.T) {
	m := newManager(t, Config{})
	_, err := m.Create(Spec{Name: "other"})
	require.NoError(t, err)
	v := newVM(t, m)
	a := startGuest(t, m, v, "a", nil, onDefault)
	b := startGuest(t, m, v, "b", nil, Attachment{Network: "other"})
	serve(t, b.listen(80), echoTo)
	require.Empty(t, a.lookup("b"))
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	_, err = a.dial(ctx, netip.AddrPortFrom(b.ip, 80))
	require.Error(t, err)
	// Nor does a frame with the other network's tag get there.
	f := make(frame, 60)
	copy(f[6:], a.links[0].mac[:])
	copy(f, b.links[0].mac[:])
	f.setKind(typeARP)
	v.raw(b.links[0].vlan, f)
	_, err = m.Connect(a.id, Attachment{Network: "other"})
	require.NoError(t, err)
	require.Equal(t, []string{b.ip.String()}, a.lookup("b"))
	_, err = m.Disconnect(a.id, "other")
	require.NoError(t, err)
	require.Empty(t, a.lookup("b"))
}

func TestEgressGoesThroughTheDialFunction(t *testing.T) {
	got := make(chan Flow, 10)
	m := newManager(t, Config{})
	_, err := m.Create(Spec{Name: "n", Egress: []Rule{{Deny: true, Ports: "25"}}, Hosts: map[string][]netip.Addr{"api.example.com": {netip.MustParseAddr("203.0.113.9")}},
		Dial: func(_ context.Context, f Flow) (net.Conn, error) {
			got <- f
			ours, theirs := streamPair(t)
			go func() {
				defer theirs.Close()
				_, _ = io.Copy(theirs, theirs)
			}()
			return ours, nil
		}})
	require.NoError(t, err)
	g := startGuest(t, m, newVM(t, m), "a", nil, Attachment{Network: "n"})
	require.Equal(t, []string{"203.0.113.9"}, g.lookup("api.example.com"))
	ctx := testContext(t)
	c, err := g.dial(ctx, netip.MustParseAddrPort("203.0.113.9:443"))
	require.NoError(t, err)
	roundTrip(t, c, "hello")
	f := <-got
	require.Equal(t, "203.0.113.9:443", f.Destination.String())
	require.Equal(t, []string{g.id, "a", "n", "tcp"}, []string{f.Container, f.ContainerName, f.Network, f.Protocol})
	require.Equal(t, []string{"api.example.com"}, f.Names)
	for _, refused := range []string{"203.0.113.9:25", "169.254.169.254:80", "169.254.1.1:1", "100.100.100.200:80", g.dns.String() + ":8080"} {
		_, err := g.dial(ctx, netip.MustParseAddrPort(refused))
		require.Error(t, err, refused)
	}
	require.Empty(t, got)
}

func TestEgressOfTheHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	serve(t, l, echoTo)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer pc.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			n, a, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], a)
		}
	}()
	outside := map[string]string{"203.0.113.1:53": pc.LocalAddr().String(), "203.0.113.1:80": l.Addr().String()}
	m := newManager(t, Config{
		Echo: func(_ context.Context, _ netip.Addr, b []byte) ([]byte, error) { return b, nil },
		Dial: func(ctx context.Context, f Flow) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, f.Protocol, outside[f.Destination.String()])
		},
	})
	_, err = m.Create(Spec{Name: "n", Services: map[uint16]string{5432: l.Addr().String()}})
	require.NoError(t, err)
	g := startGuest(t, m, newVM(t, m), "a", nil, Attachment{Network: "n"})
	ctx := testContext(t)
	to := g.lookup(hostName)
	require.Len(t, to, 1)
	c, err := g.dial(ctx, netip.AddrPortFrom(netip.MustParseAddr(to[0]), 5432))
	require.NoError(t, err)
	roundTrip(t, c, "by the gateway")
	udp := anyNIC(netip.MustParseAddrPort("203.0.113.1:53"))
	u, err := gonet.DialUDP(g.stack, nil, &udp, protocolOf(g.ip))
	require.NoError(t, err)
	defer u.Close()
	_, err = u.Write([]byte("packet"))
	require.NoError(t, err)
	require.NoError(t, u.SetDeadline(time.Now().Add(testTimeout)))
	b := make([]byte, 100)
	n, err := u.Read(b)
	require.NoError(t, err)
	require.Equal(t, "packet", string(b[:n]))
	c, err = g.dial(ctx, netip.MustParseAddrPort("203.0.113.1:80"))
	require.NoError(t, err)
	roundTrip(t, c, "by its address")
	require.NoError(t, g.ping(netip.MustParseAddr("203.0.113.7")))
	require.NoError(t, g.ping(g.dns))
}

// ping sends an echo request and waits for the reply.
func (g *guest) ping(to netip.Addr) error {
	var wq waiter.Queue
	ep, terr := g.stack.NewEndpoint(icmp.ProtocolNumber4, protocolOf(to), &wq)
	require.Nil(g.t, terr)
	c := gonet.NewUDPConn(&wq, ep)
	defer c.Close()
	require.NoError(g.t, c.SetDeadline(time.Now().Add(5*time.Second)))
	if _, err := c.WriteTo(append([]byte{8, 0, 0, 0, 0, 0, 0, 1}, "data"...), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0))); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err == nil {
		require.Equal(g.t, "data", string(b[8:n]))
	}
	return err
}

func TestPublishedPorts(t *testing.T) {
	m := newManager(t, Config{})
	v := newVM(t, m)
	g := startGuest(t, m, v, "a", []Publish{{ContainerPort: 80}, {Protocol: "udp", ContainerPort: 53}}, onDefault)
	serve(t, g.listen(80), echoTo)
	at := anyNIC(netip.AddrPortFrom(g.ip, 53))
	u, err := gonet.DialUDP(g.stack, &at, nil, protocolOf(g.ip))
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for {
			n, a, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], a)
		}
	}()
	defer func() { u.Close(); <-done }()
	bound := g.lease.Published()
	require.Len(t, bound, 2)
	require.NotZero(t, bound[0].HostPort)
	addr := net.JoinHostPort(bound[0].HostIP.String(), strconv.Itoa(int(bound[0].HostPort)))
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	roundTrip(t, c, strings.Repeat("published", 10000))
	uc, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(bound[1].HostPort))))
	require.NoError(t, err)
	defer uc.Close()
	_, err = uc.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, uc.SetDeadline(time.Now().Add(testTimeout)))
	b := make([]byte, 10)
	n, err := uc.Read(b)
	require.NoError(t, err)
	require.Equal(t, "x", string(b[:n]))

	id := newID()
	_, err = m.Reserve(Owner{id, "b"}, []Attachment{onDefault})
	require.NoError(t, err)
	_, err = m.Start(id, v.port, []Publish{{ContainerPort: 80, HostPort: bound[0].HostPort}})
	require.ErrorIs(t, err, errs.ErrConflict)
	g.lease.Close()
	_, err = net.Dial("tcp", addr)
	require.Error(t, err)
}

func TestListenIsReachedByName(t *testing.T) {
	m := newManager(t, Config{})
	l, err := m.Listen(DefaultName, "api", 80)
	require.NoError(t, err)
	serve(t, l, echoTo)
	_, err = m.Listen(DefaultName, "API", 80)
	require.ErrorIs(t, err, errs.ErrExists)
	l2, err := m.Listen(DefaultName, "api", 81)
	require.NoError(t, err)
	require.NoError(t, l2.Close())
	g := startGuest(t, m, newVM(t, m), "a", nil, onDefault)
	ip := g.lookup("api")
	require.Len(t, ip, 1)
	c, err := g.dial(testContext(t), netip.AddrPortFrom(netip.MustParseAddr(ip[0]), 80))
	require.NoError(t, err)
	roundTrip(t, c, "to the program")
	require.NoError(t, l.Close())
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	require.Empty(t, g.lookup("api"))
	_, err = m.Listen(DefaultName, "a", 80)
	require.ErrorIs(t, err, errs.ErrExists)
}

func TestIPv6(t *testing.T) {
	m := newManager(t, Config{})
	_, err := m.Create(Spec{Name: "six", IPv6: true})
	require.NoError(t, err)
	v1, v2 := newVM(t, m), newVM(t, m)
	a := startGuest(t, m, v1, "a", nil, Attachment{Network: "six"})
	b := startGuest(t, m, v2, "b", nil, Attachment{Network: "six"})
	require.True(t, b.ip6.Is6())
	l, err := gonet.ListenTCP(b.stack, anyNIC(netip.AddrPortFrom(b.ip6, 80)), protocolOf(b.ip6))
	require.NoError(t, err)
	serve(t, l, echoTo)
	c, err := a.dial(testContext(t), netip.AddrPortFrom(b.ip6, 80))
	require.NoError(t, err)
	roundTrip(t, c, "six")
	require.Equal(t, b.ip6.String(), a.ask("b", dns.TypeAAAA).Answer[0].(*dns.AAAA).AAAA.String())
	h, err := b.lease.Dial(testContext(t), "tcp6", netip.Addr{}, 80)
	require.NoError(t, err)
	roundTrip(t, h, "host")
}
