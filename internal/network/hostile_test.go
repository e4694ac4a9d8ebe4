package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// A machine that does not read does not slow others down.
func TestMachineThatStopsReading(t *testing.T) {
	m := newManager(t, Config{})
	ours, stuck := streamPair(t)
	port, err := m.Attach(ours)
	require.NoError(t, err)
	defer port.Close()
	defer stuck.Close()
	id := newID()
	_, err = m.Reserve(Owner{id, "stuck"}, []Attachment{onDefault})
	require.NoError(t, err)
	_, err = m.Start(id, port, nil)
	require.NoError(t, err)
	v1, v2 := newVM(t, m), newVM(t, m)
	a := startGuest(t, m, v1, "a", nil, onDefault)
	b := startGuest(t, m, v2, "b", nil, onDefault)
	serve(t, b.listen(80), echoTo)
	to := m.Endpoints(id)[0]
	f := make(frame, 9000)
	dst := macOf(to.IPv4)
	copy(f, dst[:])
	copy(f[6:], a.links[0].mac[:])
	f.setKind(typeIPv4)
	f[14] = 0x45
	copy(f[headerLen+12:], b4(a.ip))
	for range 5000 {
		v1.raw(a.links[0].vlan, f)
	}
	c, err := a.dial(testContext(t), netip.AddrPortFrom(b.ip, 80))
	require.NoError(t, err)
	roundTrip(t, c, string(bytes.Repeat([]byte("goes on "), 100000)))
	require.Positive(t, port.Lost())
}

// A container with many connections that nobody reads makes the host hold little for each.
func TestManyConnectionsHaveSmallBuffers(t *testing.T) {
	m := newManager(t, Config{Dial: func(context.Context, Flow) (net.Conn, error) {
		ours, theirs := streamPair(t)
		t.Cleanup(func() { theirs.Close() })
		return ours, nil
	}})
	g := startGuest(t, m, newVM(t, m), "a", nil, onDefault)
	const more = 10
	for i := range largeFlows + more {
		c, err := g.dial(testContext(t), netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(1000+i)))
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
	}
	n, err := m.find(DefaultName)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // one may be counted before the one before it has its buffers
		small := 0
		for _, e := range n.gw.stack.RegisteredEndpoints() {
			if s, ok := e.(interface{ SocketOptions() *tcpip.SocketOptions }); ok && s.SocketOptions().GetReceiveBufferSize() == smallBuffer {
				small++
			}
		}
		return small >= more
	}, testTimeout, time.Millisecond)
}

// A machine cannot speak for a container of another one, nor for the gateway.
func TestNoFrameUnderAnothersAddress(t *testing.T) {
	m := newManager(t, Config{})
	v1, v2 := newVM(t, m), newVM(t, m)
	a := startGuest(t, m, v1, "a", nil, onDefault)
	b := startGuest(t, m, v2, "b", nil, onDefault)
	seg := m.segment(a.links[0].vlan)
	seen := 0
	mb := seg.member(b.ip)
	for _, src := range []struct {
		mac mac
		ip  netip.Addr
	}{{b.links[0].mac, b.ip}, {seg.gateway, a.dns}, {a.links[0].mac, b.ip}, {mac{2}, a.ip}} {
		f := make(frame, 60)
		copy(f, b.links[0].mac[:])
		copy(f[6:], src.mac[:])
		f.setKind(typeIPv4)
		f[14] = 0x45
		copy(f[headerLen+12:], b4(src.ip))
		before := mb.port.queued.Load()
		seg.fromPort(v1.port, f)
		if mb.port.queued.Load() != before {
			seen++
		}
	}
	require.Zero(t, seen)
}

func TestManyConnectionsOpenedAndClosed(t *testing.T) {
	m := newManager(t, Config{})
	v1, v2 := newVM(t, m), newVM(t, m)
	b := startGuest(t, m, v2, "b", []Publish{{ContainerPort: 80}}, onDefault)
	serve(t, b.listen(80), echoTo)
	a := startGuest(t, m, v1, "a", nil, onDefault)
	l, err := m.Listen(DefaultName, "api", 80)
	require.NoError(t, err)
	serve(t, l, echoTo)
	api := netip.AddrPortFrom(netip.MustParseAddr(a.lookup("api")[0]), 80)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 125 {
				var c net.Conn
				var err error
				switch i % 3 {
				case 0:
					c, err = b.lease.Dial(ctx, "tcp", netip.Addr{}, 80)
				case 1:
					c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", b.lease.Published()[0].HostPort))
				default:
					c, err = a.dial(ctx, api)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					_, _ = c.Write([]byte("x"))
					_, _ = io.ReadFull(c, make([]byte, 1))
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	b.lease.Close() // with what is left open
}

func TestFaults(t *testing.T) {
	m := newManager(t, Config{})
	v1, v2 := newVM(t, m), newVM(t, m)
	a := startGuest(t, m, v1, "a", nil, onDefault)
	b := startGuest(t, m, v2, "b", nil, onDefault)
	serve(t, b.listen(80), echoTo)
	to := netip.AddrPortFrom(b.ip, 80)
	set := func(f ...Fault) {
		t.Helper()
		_, err := m.SetFaults(DefaultName, f)
		require.NoError(t, err)
	}
	ctx := testContext(t)
	c, err := a.dial(ctx, to)
	require.NoError(t, err)
	defer c.Close()
	exchange := func() error {
		_, err := c.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return err
	}
	require.NoError(t, exchange())
	set(Fault{A: "a", B: "b", Latency: 60 * time.Millisecond})
	began := time.Now()
	require.NoError(t, exchange())
	require.GreaterOrEqual(t, time.Since(began), 120*time.Millisecond)
	quickest := time.Hour
	for range 10 { // the gateway is not slower, but the host may be
		began = time.Now()
		require.NotEmpty(t, a.lookup("b"))
		quickest = min(quickest, time.Since(began))
	}
	require.Less(t, quickest, 120*time.Millisecond)

	set(Fault{Bandwidth: 200 << 10})
	began = time.Now()
	go c.Write(make([]byte, 100<<10))
	_, err = io.ReadFull(c, make([]byte, 100<<10))
	require.NoError(t, err)
	require.Greater(t, time.Since(began), 300*time.Millisecond)

	// What TCP does about losses doubles its wait each time: of much more than this, some runs would take a minute.
	set(Fault{Loss: 0.05})
	d, err := a.dial(testContext(t), to)
	require.NoError(t, err)
	roundTrip(t, d, "arrives all the same")
	set(Fault{Loss: 1})
	hopeless, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = a.dial(hopeless, to)
	require.Error(t, err)

	set(Fault{A: "b", B: "a", Partition: true}, Fault{A: Outside, Latency: time.Millisecond})
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = a.dial(short, to)
	require.Error(t, err)
	require.NotEmpty(t, a.lookup("b"))

	set(Fault{A: "a", Reset: true})
	require.Error(t, exchange())
	_, err = a.dial(ctx, to)
	require.Error(t, err)
	set()
	d, err = a.dial(testContext(t), to)
	require.NoError(t, err)
	roundTrip(t, d, "well again")
	for _, bad := range []Fault{{Latency: -1}, {Loss: 2}, {Bandwidth: -1}} {
		_, err := m.SetFaults(DefaultName, []Fault{bad})
		require.ErrorIs(t, err, errs.ErrInvalid)
	}
}

func TestCloseDuringTraffic(t *testing.T) {
	m, err := New(Config{Dial: func(ctx context.Context, _ Flow) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	require.NoError(t, err)
	v := newVM(t, m)
	g := startGuest(t, m, v, "a", nil, onDefault)
	l, err := m.Listen(DefaultName, "api", 80)
	require.NoError(t, err)
	api := netip.AddrPortFrom(netip.MustParseAddr(g.lookup("api")[0]), 80)
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = g.dial(ctx, netip.MustParseAddrPort("203.0.113.1:80")) })
	ready := make(chan struct{})
	wg.Go(func() {
		c, err := l.Accept()
		close(ready)
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	})
	c, err := g.dial(ctx, api)
	require.NoError(t, err)
	<-ready
	m.Close()
	m.Close()
	cancel()
	c.Close()
	wg.Wait()
	_, err = m.Create(Spec{Name: "n"})
	require.ErrorIs(t, err, errs.ErrClosed)
	_, err = m.Start(g.id, v.port, nil)
	require.ErrorIs(t, err, errs.ErrClosed)
	require.ErrorIs(t, m.closeErr(), errs.ErrClosed)
}

func (m *Manager) closeErr() error { _, err := m.List(Filter{}); return err }

func TestBadInput(t *testing.T) {
	m := newManager(t, Config{})
	p := netip.MustParsePrefix
	_, err := m.Create(Spec{Name: "a", Subnet: p("10.5.0.0/24"), Subnet6: p("fd00:1::/64")})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		spec Spec
		want error
		says string
	}{
		"name":       {Spec{Name: "a b"}, errs.ErrInvalid, "network name"},
		"reserved":   {Spec{Name: "none"}, errs.ErrInvalid, "network name"},
		"taken name": {Spec{Name: "a"}, errs.ErrExists, `"a"`},
		"overlap":    {Spec{Name: "b", Subnet: p("10.5.0.128/25")}, errs.ErrConflict, "10.5.0.128/25"},
		"overlap 6":  {Spec{Name: "b", Subnet6: p("fd00:1::/64")}, errs.ErrConflict, "fd00:1::/64"},
		"host bits":  {Spec{Name: "b", Subnet: netip.PrefixFrom(netip.MustParseAddr("10.6.0.1"), 24)}, errs.ErrInvalid, "subnet"},
		"loopback":   {Spec{Name: "b", Subnet: p("127.0.0.0/16")}, errs.ErrInvalid, "subnet"},
		"too small":  {Spec{Name: "b", Subnet: p("10.6.0.0/30")}, errs.ErrInvalid, "subnet"},
		"gateway":    {Spec{Name: "b", Subnet: p("10.6.0.0/24"), Gateway: netip.MustParseAddr("10.7.0.1")}, errs.ErrInvalid, "gateway"},
		"rule host":  {Spec{Name: "b", Egress: []Rule{{Host: "a b"}}}, errs.ErrInvalid, "host of an egress rule"},
		"rule ports": {Spec{Name: "b", Egress: []Rule{{Ports: "80-70000"}}}, errs.ErrInvalid, "ports of an egress rule"},
		"rule proto": {Spec{Name: "b", Egress: []Rule{{Protocol: "sctp"}}}, errs.ErrInvalid, "protocol"},
		"service":    {Spec{Name: "b", Services: map[uint16]string{80: "nowhere"}}, errs.ErrInvalid, "service"},
		"hosts":      {Spec{Name: "b", Hosts: map[string][]netip.Addr{"x": nil}}, errs.ErrInvalid, "host"},
	} {
		_, err := m.Create(c.spec)
		require.ErrorIs(t, err, c.want, name)
		require.ErrorContains(t, err, c.says, name)
	}
	ip := netip.MustParseAddr
	_, err = m.Reserve(Owner{newID(), "first"}, []Attachment{{Network: "a", IPv4: ip("10.5.0.9")}})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		a    Attachment
		want error
	}{
		"unknown network": {Attachment{Network: "zzz"}, errs.ErrNotFound},
		"taken address":   {Attachment{Network: "a", IPv4: ip("10.5.0.9")}, errs.ErrConflict},
		"the gateway's":   {Attachment{Network: "a", IPv4: ip("10.5.0.1")}, errs.ErrConflict},
		"outside":         {Attachment{Network: "a", IPv4: ip("10.6.0.9")}, errs.ErrInvalid},
		"broadcast":       {Attachment{Network: "a", IPv4: ip("10.5.0.255")}, errs.ErrInvalid},
		"IPv6":            {Attachment{Network: "a", IPv4: ip("fd00:1::9")}, errs.ErrInvalid},
		"alias":           {Attachment{Network: "a", Aliases: []string{"a b"}}, errs.ErrInvalid},
	} {
		_, err := m.Reserve(Owner{newID(), "second"}, []Attachment{onDefault, c.a})
		require.ErrorIs(t, err, c.want, name)
	}
	i, err := m.Inspect(DefaultName)
	require.NoError(t, err)
	require.Empty(t, i.Members)
	_, err = m.Remove("a")
	require.ErrorIs(t, err, errs.ErrInUse)
	_, err = m.Remove(DefaultName)
	require.ErrorIs(t, err, errs.ErrConflict)
	gone, err := m.Prune()
	require.NoError(t, err)
	require.Empty(t, gone)
}

func TestAddressesRunOut(t *testing.T) {
	m := newManager(t, Config{})
	_, err := m.Create(Spec{Name: "a", Subnet: netip.MustParsePrefix("10.5.0.0/29")})
	require.NoError(t, err)
	var ids []string
	seen := make(map[netip.Addr]bool)
	for i := range 5 {
		ids = append(ids, newID())
		e, err := m.Reserve(Owner{ids[i], fmt.Sprint(i)}, []Attachment{{Network: "a"}})
		require.NoError(t, err)
		require.False(t, seen[e[0].IPv4])
		seen[e[0].IPv4] = true
	}
	_, err = m.Reserve(Owner{newID(), "x"}, []Attachment{{Network: "a"}})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	m.Release(ids[2])
	_, err = m.Reserve(Owner{newID(), "x"}, []Attachment{{Network: "a"}})
	require.NoError(t, err)
}

func TestRecordsAreReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "networks")
	cfg := Config{Dir: dir, Taken: func() []netip.Prefix { return nil }}
	m, err := New(cfg)
	require.NoError(t, err)
	made, err := m.Create(Spec{Name: "n", IPv6: true, Egress: []Rule{{Deny: true, Ports: "25"}}, Labels: map[string]string{"a": "b"},
		Dial: func(context.Context, Flow) (net.Conn, error) { return nil, io.EOF }})
	require.NoError(t, err)
	id := newID()
	eps, err := m.Reserve(Owner{id, "c"}, []Attachment{{Network: "n"}})
	require.NoError(t, err)
	m.Close()
	require.NoError(t, os.WriteFile(filepath.Join(dir, newID()+".json"), []byte("{"), 0o600))
	m = newManager(t, cfg)
	got, err := m.Inspect("n")
	require.NoError(t, err)
	want := made
	want.Spec.Dial, got.Spec.Dial = nil, nil
	require.True(t, want.Created.Equal(got.Created))
	got.Created = want.Created
	require.Equal(t, want, got)
	m.Restore(Owner{id, "c"}, eps)
	require.Equal(t, eps, m.Endpoints(id))
	// Without its function nothing leaves it, until it is made again.
	g := &guest{t: t, id: id, vm: newVM(t, m)}
	g.lease, err = m.Start(id, g.vm.port, nil)
	require.NoError(t, err)
	g.boot(m)
	_, err = g.dial(testContext(t), netip.MustParseAddrPort("203.0.113.1:80"))
	require.Error(t, err)
	_, err = m.Create(Spec{Name: "n"})
	require.ErrorIs(t, err, errs.ErrInUse)
}

func TestRules(t *testing.T) {
	flow := func(to string, names ...string) Flow {
		return Flow{Protocol: "tcp", Destination: netip.MustParseAddrPort(to), Names: names}
	}
	for name, c := range map[string]struct {
		internal bool
		rules    []Rule
		f        Flow
		want     bool
	}{
		"no rule":             {false, nil, flow("1.1.1.1:80"), true},
		"internal":            {true, nil, flow("1.1.1.1:80"), false},
		"internal and rule":   {true, []Rule{{Host: "1.1.1.0/24"}}, flow("1.1.1.1:80"), true},
		"loopback":            {false, nil, flow("127.0.0.1:80"), false},
		"loopback by all":     {false, []Rule{{}}, flow("127.0.0.1:80"), false},
		"loopback by /0":      {false, []Rule{{Host: "0.0.0.0/0"}}, flow("127.0.0.1:80"), false},
		"loopback by address": {false, []Rule{{Host: "127.0.0.1", Ports: "80"}}, flow("127.0.0.1:80"), true},
		"loopback by name":    {false, []Rule{{Host: "evil.example"}}, flow("127.0.0.1:80", "evil.example"), false},
		"mapped loopback":     {false, nil, flow("[::ffff:127.0.0.1]:80"), false},
		"6 loopback":          {false, nil, flow("[::1]:80"), false},
		"metadata":            {false, nil, flow("169.254.169.254:80"), false},
		"nat64":               {false, nil, flow("[64:ff9b::7f00:1]:80"), false},
		"deny first":          {false, []Rule{{Deny: true, Host: "*.ads.com"}, {}}, flow("1.1.1.1:80", "x.ads.com"), false},
		"below is not itself": {false, []Rule{{Deny: true, Host: "*.ads.com"}}, flow("1.1.1.1:80", "ads.com"), true},
		"ports":               {false, []Rule{{Ports: "443,8000-8100"}, {Deny: true}}, flow("1.1.1.1:8050"), true},
		"other ports":         {false, []Rule{{Ports: "443,8000-8100"}, {Deny: true}}, flow("1.1.1.1:80"), false},
		"protocol":            {false, []Rule{{Protocol: "udp", Deny: true}}, flow("1.1.1.1:80"), true},
		"ours":                {false, []Rule{{Host: "10.0.0.0/8"}}, flow("10.9.9.9:80"), false},
	} {
		p := policy{internal: c.internal, ours: func(a netip.Addr) bool { return a == netip.MustParseAddr("10.9.9.9") }}
		for _, r := range c.rules {
			x, err := r.compile()
			require.NoError(t, err, name)
			p.rules = append(p.rules, x)
		}
		require.Equal(t, c.want, p.allows(c.f), name)
	}
}

// fakeResolver is a host's resolver without a host.
type fakeResolver struct{ *net.Resolver }

func (fakeResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if host == "known.example." && network == "ip4" {
		return []netip.Addr{netip.MustParseAddr("203.0.113.5")}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (fakeResolver) LookupTXT(context.Context, string) ([]string, error) {
	return []string{string(bytes.Repeat([]byte("t"), 700))}, nil
}

func TestNames(t *testing.T) {
	m := newManager(t, Config{Resolver: fakeResolver{}})
	_, err := m.Create(Spec{Name: "in", Internal: true})
	require.NoError(t, err)
	_, err = m.Create(Spec{Name: "own", Resolve: func(_ context.Context, q Query) ([]netip.Addr, bool, error) {
		return []netip.Addr{netip.MustParseAddr("10.1.1.1")}, q.Name == "mine.example" && q.ContainerName == "o", nil
	}})
	require.NoError(t, err)
	v := newVM(t, m)
	g := startGuest(t, m, v, "a", nil, onDefault)
	require.Equal(t, []string{"203.0.113.5"}, g.lookup("known.example"))
	require.Equal(t, dns.RcodeSuccess, g.ask("known.example", dns.TypeAAAA).Rcode) // no address of this kind, but the name is known
	require.Equal(t, dns.RcodeNameError, g.ask("unknown.example", dns.TypeA).Rcode)
	require.True(t, g.ask("long.example", dns.TypeTXT).Truncated)
	require.Equal(t, dns.RcodeNotImplemented, g.ask("known.example", dns.TypeANY).Rcode)
	in := startGuest(t, m, v, "i", nil, Attachment{Network: "in"})
	require.Equal(t, dns.RcodeNameError, in.ask("known.example", dns.TypeA).Rcode)
	own := startGuest(t, m, v, "o", nil, Attachment{Network: "own"})
	require.Equal(t, []string{"10.1.1.1"}, own.lookup("mine.example"))
	m.Rename(g.id, "renamed")
	require.Len(t, g.lookup("renamed"), 1)
	require.Empty(t, g.lookup("a"))
}

// fuzzManager is a network that takes frames without machines.
func fuzzManager(f *testing.F) (*Port, *segment) {
	m := newManager(f, Config{Resolver: fakeResolver{}, Dial: func(context.Context, Flow) (net.Conn, error) { return nil, io.EOF },
		Echo: func(context.Context, netip.Addr, []byte) ([]byte, error) { return nil, io.EOF }})
	_, err := m.Create(Spec{Name: "n", IPv6: true})
	require.NoError(f, err)
	ours, theirs := streamPair(f)
	port, err := m.Attach(ours)
	require.NoError(f, err)
	f.Cleanup(func() { theirs.Close(); port.Close() })
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	id := newID()
	_, err = m.Reserve(Owner{id, "a"}, []Attachment{{Network: "n", IPv4: netip.MustParseAddr("10.208.16.2")}})
	require.NoError(f, err)
	_, err = m.Start(id, port, nil)
	require.NoError(f, err)
	_, err = m.SetFaults("n", []Fault{{Loss: 0.01, Reset: true, Latency: time.Microsecond}})
	require.NoError(f, err)
	i, err := m.Inspect("n")
	require.NoError(f, err)
	return port, m.segment(i.VLAN)
}

// FuzzFrame hands whatever a machine may send to a network.
func FuzzFrame(f *testing.F) {
	port, seg := fuzzManager(f)
	src := macOf(netip.MustParseAddr("10.208.16.2"))
	for _, kind := range []int{typeIPv4, typeARP, typeIPv6} {
		for _, proto := range []byte{1, 6, 17, 58} {
			b := make([]byte, 100)
			copy(b, seg.gateway[:])
			copy(b[6:], src[:])
			frame(b).setKind(kind)
			b[14] = 0x45
			if kind == typeIPv6 {
				b[14], b[20], b[19] = 0x60, proto, 60
			}
			b[17], b[23] = 80, proto
			copy(b[26:], []byte{10, 208, 16, 2, 203, 0, 113, 1})
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen || len(b) > maxFrame-tagLen {
			return
		}
		tagged := make([]byte, len(b)+tagLen)
		copy(tagged, b[:12])
		tagged[12], tagged[13], tagged[15] = 0x81, 0, byte(seg.vlan)
		copy(tagged[16:], b[12:])
		copy(tagged[6:], src[:]) // the rest is refused at once
		if g, vlan, ok := untag(tagged); ok && vlan == seg.vlan {
			seg.fromPort(port, g)
		}
		_, _, _ = untag(b)
	})
}

// FuzzReverse checks that a name of an address leads to that address only.
func FuzzReverse(f *testing.F) {
	f.Add("1.0.0.127.in-addr.arpa")
	f.Add("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa")
	f.Fuzz(func(t *testing.T, name string) {
		if a, ok := fromReverse(name); ok {
			back, err := dns.ReverseAddr(a.String())
			require.NoError(t, err)
			b, ok := fromReverse(normal(back))
			require.True(t, ok)
			require.Equal(t, a, b)
		}
	})
}

// FuzzRecord checks that a record that is read can be used.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","vlan":2,"spec":{"Name":"n","Subnet":"10.0.0.0/24","Gateway":"10.0.0.1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeRecord(b, "x")
		if err == nil {
			a, err := n.take(netip.Addr{}, "c")
			if err == nil {
				require.True(t, n.spec.Subnet.Contains(a))
			}
		}
	})
}

func BenchmarkThroughput(b *testing.B) {
	m := newManager(b, Config{})
	v1, v2 := newVM(b, m), newVM(b, m)
	x := startGuest(b, m, v1, "a", nil, onDefault)
	y := startGuest(b, m, v2, "b", nil, onDefault)
	serve(b, y.listen(80), func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _, _ = c.Write([]byte("x")) })
	send := func(b *testing.B, c net.Conn) {
		buf := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{}).Read(buf)
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			_, err := c.Write(buf)
			require.NoError(b, err)
		}
		require.NoError(b, c.(interface{ CloseWrite() error }).CloseWrite())
		_, _ = c.Read(buf[:1])
		c.Close()
	}
	b.Run("host", func(b *testing.B) {
		c, err := y.lease.Dial(context.Background(), "tcp", netip.Addr{}, 80)
		require.NoError(b, err)
		send(b, c)
	})
	b.Run("egress", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		serve(b, l, func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _, _ = c.Write([]byte("x")) })
		_, err = m.Create(Spec{Name: "services", Services: map[uint16]string{80: l.Addr().String()}})
		require.NoError(b, err)
		z := startGuest(b, m, v1, "z", nil, Attachment{Network: "services"})
		c, err := z.dial(context.Background(), netip.AddrPortFrom(z.dns, 80))
		require.NoError(b, err)
		send(b, c)
	})
	b.Run("container", func(b *testing.B) {
		c, err := x.dial(context.Background(), netip.AddrPortFrom(y.ip, 80))
		require.NoError(b, err)
		send(b, c)
	})
}
