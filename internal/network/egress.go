package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/splice"
)

// The bounds of what a container may have open at a time, and for how long nothing may happen.
const (
	maxFlows    = 4096
	maxHalfOpen = 512
	dialTimeout = 30 * time.Second
	udpIdle     = time.Minute

	largeFlows  = 64        // of a container may have buffers that grow
	smallBuffer = 128 << 10 // bytes, of the others, each way: two of the largest packets
)

// flows counts what a container has open to the outside.
type flows struct {
	mu       sync.Mutex
	open     int
	halfOpen int
}

func (f *flows) add(half int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open >= maxFlows || f.halfOpen+half > maxHalfOpen {
		return false
	}
	f.open++
	f.halfOpen += half
	return true
}

// many tells that what is opened now must do with small buffers: so what a container makes this process hold is bounded.
func (f *flows) many() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open > largeFlows
}

// established says that a connection is not half-open any more.
func (f *flows) established() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.halfOpen--
}

func (f *flows) done(half int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.halfOpen -= half
	f.open--
}

// member returns who has an address on the segment.
func (s *segment) member(a netip.Addr) *member { return s.table.Load().addrs[a] }

// tcp takes a connection that a container opens to any address which does not listen here.
func (g *gateway) tcp(r *tcp.ForwarderRequest) {
	if !g.begin() {
		r.Complete(true)
		return
	}
	defer g.end()
	id := r.ID()
	src := netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort)
	dst := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	m := g.seg.member(src.Addr())
	if m == nil || !m.lease.flows.add(1) {
		r.Complete(true)
		return
	}
	half := 1 // until the container has the connection
	defer func() { m.lease.flows.done(half) }()
	out, err := g.connect(m, "tcp", src, dst)
	if err != nil {
		g.log.Debug("a container's connection was not made", "network", g.name, "container", m.owner.Name, "to", dst, "err", err)
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil { // it has given up
		r.Complete(true)
		out.Close()
		return
	}
	r.Complete(false)
	if m.lease.flows.many() {
		ep.SocketOptions().SetReceiveBufferSize(smallBuffer, true)
		ep.SocketOptions().SetSendBufferSize(smallBuffer, true)
	}
	m.lease.flows.established()
	half = 0
	splice.Join(m.lease.ctx, newConn(&wq, ep), out)
}

// connect makes the host's side of a container's connection.
func (g *gateway) connect(m *member, protocol string, src, dst netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(m.lease.ctx, dialTimeout)
	defer cancel()
	if g.isLocal(dst.Addr()) {
		return g.service(ctx, protocol, dst)
	}
	f := g.flow(m, protocol, src, dst)
	if !g.policy.allows(f) {
		return nil, fmt.Errorf("the network's rules do not allow it: %w", errs.ErrUnsupported)
	}
	conn, err := g.dial(ctx, f)
	if err == nil && conn == nil {
		err = errors.New("the network's dial function returned no connection")
	}
	return conn, err
}

func (g *gateway) flow(m *member, protocol string, src, dst netip.AddrPort) Flow {
	return Flow{
		Network: g.name, Container: m.owner.ID, ContainerName: m.owner.Name, Protocol: protocol, Source: src, Destination: dst,
		Names: g.dns.namesOf(dst.Addr()),
	}
}

// service connects to what the gateway offers of the host.
func (g *gateway) service(ctx context.Context, protocol string, dst netip.AddrPort) (net.Conn, error) {
	to := g.spec.Services[dst.Port()]
	if to == "" || protocol != "tcp" || !g.isGateway(dst.Addr()) {
		return nil, fmt.Errorf("nothing listens: %w", errs.ErrUnavailable)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to)
}

func (g *gateway) isGateway(a netip.Addr) bool {
	return a == g.spec.Gateway || a.Is6()
}

// hostDial is the dial function of a network that has none of its own.
func hostDial(ctx context.Context, f Flow) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, f.Protocol, f.Destination.String())
}

// udp takes the first packet of a container to an address which does not listen here. It must not wait.
func (g *gateway) udp(r *udp.ForwarderRequest) bool {
	id := r.ID()
	src := netip.AddrPortFrom(fromAddress(id.RemoteAddress), id.RemotePort)
	dst := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	m := g.seg.member(src.Addr())
	if m == nil || g.isLocal(dst.Addr()) || !g.policy.allows(g.flow(m, "udp", src, dst)) || !m.lease.flows.add(0) {
		return false
	}
	if !g.begin() {
		m.lease.flows.done(0)
		return true
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		m.lease.flows.done(0)
		g.end()
		return true
	}
	in := gonet.NewUDPConn(&wq, ep)
	go func() {
		defer g.end()
		defer m.lease.flows.done(0)
		defer in.Close()
		out, err := g.connect(m, "udp", src, dst)
		if err != nil {
			g.log.Debug("a container's packets were not sent", "network", g.name, "container", m.owner.Name, "to", dst, "err", err)
			return
		}
		exchange(m.lease.ctx, in, out, udpIdle)
	}()
	return true
}

// conn is a TCP connection of the gateway that can be reset.
type conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

func newConn(wq *waiter.Queue, ep tcpip.Endpoint) conn { return conn{gonet.NewTCPConn(wq, ep), ep} }

// Reset ends the connection so that the other side knows it was not in order.
func (c conn) Reset() { c.ep.Abort() }
