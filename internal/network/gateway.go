package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// nic is the number of a gateway's only interface.
const nic = 1

// maxConnecting is how many connections of a network may be on their way to the outside at a time.
const maxConnecting = 2048

// gateway is the host on a network: a TCP/IP stack that answers for its own addresses, and ends the connections of
// containers to all others.
type gateway struct {
	name   string // of the network
	seg    *segment
	log    *slog.Logger
	stack  *stack.Stack
	spec   Spec
	policy policy
	dial   DialFunc
	echo   func(context.Context, netip.Addr, []byte) ([]byte, error)
	dns    *dnsServer
	pings  chan struct{} // has a token for each echo request on its way

	ctx    context.Context // ends with the gateway
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
	local  map[netip.Addr]bool // its addresses
}

func newStack(l stack.LinkEndpoint) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &rcv, &snd} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			s.Destroy()
			return nil, fmt.Errorf("set up a network stack: %s", err)
		}
	}
	// Spoofing and promiscuous: it answers connections in the name of any address. What is not for it to answer is kept
	// from it by the tap.
	if err := s.CreateNIC(nic, l); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("set up a network stack: %s", err)
	}
	s.SetSpoofing(nic, true)
	s.SetPromiscuousMode(nic, true)
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return s, nil
}

// newGateway starts the gateway of a network whose addresses are complete.
func newGateway(spec Spec, seg *segment, cfg Config, ours func(netip.Addr) bool) (g *gateway, err error) {
	g = &gateway{
		name: spec.Name, seg: seg, log: cfg.Logger, spec: spec, dial: spec.Dial, echo: cfg.Echo,
		local: make(map[netip.Addr]bool), pings: make(chan struct{}, maxPings),
	}
	if g.dial == nil {
		g.dial = cfg.Dial
	}
	g.policy = policy{internal: spec.Internal, ours: ours}
	for _, r := range spec.Egress {
		c, err := r.compile()
		if err != nil {
			return nil, err
		}
		g.policy.rules = append(g.policy.rules, c)
	}
	seg.link = &link{seg: seg, tap: g.tap}
	if g.stack, err = newStack(seg.link); err != nil {
		return nil, err
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	for _, a := range gatewayAddrs(spec) {
		if err := g.addAddress(a); err != nil {
			return nil, err
		}
	}
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, 1<<20, maxConnecting, g.tcp).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.stack, g.udp).HandlePacket)
	g.dns, err = g.serveDNS(cfg.Resolver)
	return g, err
}

// gatewayAddrs returns the addresses of the gateway of a network.
func gatewayAddrs(s Spec) []netip.Addr {
	if !s.IPv6 {
		return []netip.Addr{s.Gateway}
	}
	return []netip.Addr{s.Gateway, address6(s.Subnet6, s.Gateway)}
}

// close ends all connections and returns when nothing of the gateway runs any more.
func (g *gateway) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	if g.dns != nil {
		g.dns.close()
	}
	g.drain()
	g.stack.Destroy()
}

// drain waits for what begin has counted. The stack waits for the other side of a handshake, and tells nobody that it
// does: its connections are aborted again and again, until none is left.
func (g *gateway) drain() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.wg.Wait()
	}()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		for _, e := range g.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-done:
			return
		case <-again.C:
		}
	}
}

// begin counts work for which close waits. It returns false where that has begun.
func (g *gateway) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	return true
}

func (g *gateway) end() { g.wg.Done() }

// addAddress makes an address one of the gateway's own.
func (g *gateway) addAddress(a netip.Addr) error {
	err := g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: protocolOf(a), AddressWithPrefix: toAddress(a).WithPrefix(),
	}, stack.AddressProperties{})
	if err != nil {
		return fmt.Errorf("give a network the address %s: %w: %s", a, errs.ErrConflict, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.local[a] = true
	return nil
}

func (g *gateway) removeAddress(a netip.Addr) {
	g.mu.Lock()
	delete(g.local, a)
	g.mu.Unlock()
	g.stack.RemoveAddress(nic, toAddress(a))
}

func (g *gateway) isLocal(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.local[a]
}

func toAddress(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fromAddress(a tcpip.Address) netip.Addr {
	out, _ := netip.AddrFromSlice(a.AsSlice())
	return out.Unmap()
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: toAddress(a.Addr()), Port: a.Port()}
}

// tap takes the frames that the stack must not see: questions for the Ethernet address of others, which it would answer in
// their name, and echo requests to the outside.
func (g *gateway) tap(f frame) bool {
	b := f.body()
	switch f.kind() {
	case typeARP:
		const request = 1
		return b[7] == request && !g.isLocal(netip.AddrFrom4([4]byte(b[24:28])))
	case typeIPv4:
		dst := netip.AddrFrom4([4]byte(b[16:20]))
		if dst.IsMulticast() || dst == lastOf(g.spec.Subnet) || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return true
		}
		return b[9] == protoICMP && !g.isLocal(dst) && g.ping4(f)
	case typeIPv6:
		return g.tap6(f)
	}
	return true
}
