package network

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testTimeout = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// streamPair returns two connected stream sockets.
func streamPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	return a, b
}

// testVM is a machine without a machine: its containers are TCP/IP stacks in the test.
type testVM struct {
	conn net.Conn
	port *Port
	mu   sync.Mutex
	out  sync.Mutex
	has  map[mac]*guestLink
}

func newVM(t testing.TB, m *Manager) *testVM {
	t.Helper()
	ours, theirs := streamPair(t)
	port, err := m.Attach(ours)
	require.NoError(t, err)
	v := &testVM{conn: theirs, port: port, has: make(map[mac]*guestLink)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.read()
	}()
	t.Cleanup(func() {
		theirs.Close()
		<-done
		require.NoError(t, port.Close())
	})
	return v
}

func (v *testVM) read() {
	r := bufio.NewReaderSize(v.conn, 256<<10)
	buf := make([]byte, maxFrame)
	for {
		n, err := readFrame(r, buf)
		if err != nil {
			return
		}
		f, vlan, ok := untag(buf[:n])
		if !ok {
			continue
		}
		v.mu.Lock()
		for _, l := range v.has {
			if l.vlan == vlan && (l.mac == f.dst() || f.dst().group()) {
				pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
				l.ParseHeader(pkt)
				l.mu.RLock()
				if l.disp != nil {
					l.disp.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(f.kind()), pkt)
				}
				l.mu.RUnlock()
				pkt.DecRef()
			}
		}
		v.mu.Unlock()
	}
}

// raw sends a frame as the machine does.
func (v *testVM) raw(vlan uint16, f frame) {
	p := (&buffers{}).copyOf(f)
	v.out.Lock()
	defer v.out.Unlock()
	_, _ = v.conn.Write(p.tag(vlan))
}

// guestLink is a container's interface.
type guestLink struct {
	link
	vm   *testVM
	vlan uint16
	mac  mac
}

func (l *guestLink) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(l.mac[:]) }

func (l *guestLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		v := pkt.ToView()
		l.vm.raw(l.vlan, v.AsSlice())
		v.Release()
	}
	return pkts.Len(), nil
}

// guest is a running container.
type guest struct {
	t     testing.TB
	id    string
	lease *Lease
	stack *stack.Stack
	links []*guestLink
	vm    *testVM
	ip    netip.Addr
	ip6   netip.Addr
	dns   netip.Addr
}

// startGuest makes a container in networks and starts it in a machine.
func startGuest(t testing.TB, m *Manager, v *testVM, name string, publish []Publish, wants ...Attachment) *guest {
	t.Helper()
	g := &guest{t: t, id: newID(), vm: v}
	_, err := m.Reserve(Owner{g.id, name}, wants)
	require.NoError(t, err)
	g.lease, err = m.Start(g.id, v.port, publish)
	require.NoError(t, err)
	g.boot(m)
	return g
}

func (g *guest) boot(m *Manager) {
	ifaces, err := m.Interfaces(g.id)
	require.NoError(g.t, err)
	g.stack, err = newStack(&guestLink{})
	require.NoError(g.t, err)
	require.Nil(g.t, g.stack.RemoveNIC(nic))
	var routes []tcpip.Route
	for i, x := range ifaces {
		hw, err := net.ParseMAC(x.MAC)
		require.NoError(g.t, err)
		l := &guestLink{vm: g.vm, vlan: x.VLAN, mac: mac(hw)}
		id := tcpip.NICID(i + 1)
		require.Nil(g.t, g.stack.CreateNIC(id, l))
		g.vm.mu.Lock()
		g.vm.has[l.mac] = l
		g.vm.mu.Unlock()
		g.links = append(g.links, l)
		for _, p := range x.Addresses {
			require.Nil(g.t, g.stack.AddProtocolAddress(id, tcpip.ProtocolAddress{
				Protocol: protocolOf(p.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toAddress(p.Addr()), PrefixLen: p.Bits()},
			}, stack.AddressProperties{}))
			sub := tcpip.AddressWithPrefix{Address: toAddress(p.Addr()), PrefixLen: p.Bits()}.Subnet()
			routes = append(routes, tcpip.Route{Destination: sub, NIC: id})
			if i == 0 && p.Addr().Is4() {
				g.ip = p.Addr()
			} else if i == 0 {
				g.ip6 = p.Addr()
			}
		}
		for _, gw := range x.Gateways {
			all := header.IPv4EmptySubnet
			if gw.Is6() {
				all = header.IPv6EmptySubnet
			}
			routes = append(routes, tcpip.Route{Destination: all, Gateway: toAddress(gw), NIC: id})
		}
		if i == 0 {
			g.dns = x.DNS[0]
		}
	}
	g.stack.SetRouteTable(routes)
	g.t.Cleanup(g.stop)
}

func (g *guest) stop() {
	g.vm.mu.Lock()
	for _, l := range g.links {
		delete(g.vm.has, l.mac)
	}
	g.vm.mu.Unlock()
	g.lease.Close()
	if g.stack != nil {
		g.stack.Destroy()
		g.stack = nil
	}
}

func anyNIC(a netip.AddrPort) tcpip.FullAddress {
	f := fullAddress(a)
	f.NIC = 0
	return f
}

func (g *guest) dial(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.stack, anyNIC(to), protocolOf(to.Addr()))
}

func (g *guest) listen(port uint16) net.Listener {
	l, err := gonet.ListenTCP(g.stack, anyNIC(netip.AddrPortFrom(g.ip, port)), protocolOf(g.ip))
	require.NoError(g.t, err)
	g.t.Cleanup(func() { l.Close() })
	return l
}

// serve answers each connection to a port with what fn does.
func serve(t testing.TB, l net.Listener, fn func(net.Conn)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
				fn(c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		if s, ok := l.(interface{ Shutdown() }); ok {
			s.Shutdown()
		}
		l.Close()
		wg.Wait()
	})
}

func echoTo(c net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func newManager(t testing.TB, cfg Config) *Manager {
	t.Helper()
	if cfg.Taken == nil {
		cfg.Taken = func() []netip.Prefix { return nil }
	}
	m, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

var onDefault = Attachment{Network: DefaultName}
