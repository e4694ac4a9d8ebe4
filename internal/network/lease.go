package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Lease is the presence of a running container in its networks. A nil Lease is of one that has none.
type Lease struct {
	m      *Manager
	owner  *owner
	port   *Port
	ctx    context.Context // ends with the lease
	cancel context.CancelFunc
	flows  flows
	wg     sync.WaitGroup // of published ports
	bound  []Published

	listeners []io.Closer // of published ports

	mu     sync.Mutex
	closed bool
	places []place
}

// place is where a lease is in one network.
type place struct {
	endpoint Endpoint
	member   *member
	gw       *gateway
}

// Start makes a container reachable, by its names and by its published ports, in the machine with the port. Close what
// it returns when the container has ended.
func (m *Manager) Start(id string, port *Port, publish []Publish) (_ *Lease, err error) {
	m.mu.Lock()
	o, err := m.owner(id)
	if err != nil {
		m.mu.Unlock()
		return nil, err
	}
	old, endpoints, who := o.lease, slices.Clone(o.endpoints), o.Owner
	l := &Lease{m: m, owner: o, port: port}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	o.lease = l
	m.mu.Unlock()
	old.Close()
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if len(endpoints) == 0 && len(publish) > 0 {
		return nil, fmt.Errorf("publish ports: %w: the container has no network", errs.ErrInvalid)
	}
	for _, e := range endpoints {
		if err := m.join(l, who, e); err != nil {
			return nil, err
		}
	}
	return l, l.publish(publish)
}

// join puts a lease into a network.
func (m *Manager) join(l *Lease, who Owner, e Endpoint) error {
	m.mu.Lock()
	n := m.networks[e.NetworkID]
	m.mu.Unlock()
	if n == nil {
		return fmt.Errorf("network %q %w: it was removed", e.Network, errs.ErrNotFound)
	}
	gw, err := m.gateway(n)
	if err != nil {
		return err
	}
	mb := &member{owner: who, mac: macOf(e.IPv4), addrs: []netip.Addr{e.IPv4}, names: namesOf(who, e), port: l.port, lease: l}
	if e.IPv6.IsValid() {
		mb.addrs = append(mb.addrs, e.IPv6)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("join network %q: %w: the container has ended", e.Network, errs.ErrConflict)
	}
	gw.seg.add(mb)
	for _, a := range mb.addrs { // it need not be asked for: it follows from the address
		gw.stack.AddStaticNeighbor(nic, protocolOf(a), toAddress(a), tcpip.LinkAddress(mb.mac[:]))
	}
	l.places = append(l.places, place{e, mb, gw})
	return nil
}

// namesOf are the names of a container in a network.
func namesOf(o Owner, e Endpoint) []string {
	names := []string{normal(o.Name)}
	for _, a := range append([]string{o.ID[:min(12, len(o.ID))]}, e.Aliases...) {
		if a = normal(a); !slices.Contains(names, a) {
			names = append(names, a)
		}
	}
	return names
}

// leave takes a lease out of a network.
func (l *Lease) leave(e Endpoint) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, p := range l.places {
		if p.endpoint.NetworkID == e.NetworkID {
			p.gw.seg.remove(p.member)
			l.places = slices.Delete(slices.Clone(l.places), i, i+1)
			return
		}
	}
}

func (l *Lease) rename(o Owner, endpoints []Endpoint) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.places {
		p := &l.places[i]
		mb := *p.member
		mb.owner, mb.names = o, namesOf(o, p.endpoint)
		p.member = &mb
		p.gw.seg.add(&mb)
	}
}

// Stop makes the container unreachable: its connections are reset, its published ports closed. It does not wait.
func (l *Lease) Stop() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.closed = true
	places := l.places
	l.places = nil
	l.mu.Unlock()
	l.cancel()
	for _, c := range l.listeners {
		c.Close()
	}
	for _, p := range places {
		p.gw.seg.remove(p.member)
	}
}

// Close is Stop, and returns when nothing of the lease runs any more. A second call waits too.
func (l *Lease) Close() {
	if l == nil {
		return
	}
	l.Stop()
	l.wg.Wait()
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.owner.lease == l {
		l.owner.lease = nil
	}
}

// gateways returns the gateways of the networks that the container is in, first that one.
func (l *Lease) gateways(first *gateway) []*gateway {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []*gateway{first}
	for _, p := range l.places {
		if p.gw != first {
			out = append(out, p.gw)
		}
	}
	return out
}

// Published returns the ports that are published, with those of the host that were free.
func (l *Lease) Published() []Published {
	if l == nil {
		return nil
	}
	return slices.Clone(l.bound)
}

// Dial connects to a port of the container's first address, or to one of its addresses where host names it.
func (l *Lease) Dial(ctx context.Context, network string, host netip.Addr, port uint16) (net.Conn, error) {
	if l == nil {
		return nil, fmt.Errorf("dial: %w: the container has no network", errs.ErrUnavailable)
	}
	l.mu.Lock()
	places := l.places
	l.mu.Unlock()
	for _, p := range places {
		for _, a := range p.member.addrs {
			fits := network == "tcp" || network == "tcp4" && a.Is4() || network == "tcp6" && a.Is6()
			if fits && (a == host || !host.IsValid()) {
				return l.dial(ctx, p.gw, netip.AddrPortFrom(a, port))
			}
		}
	}
	return nil, fmt.Errorf("dial %s: %w: the container has no such address", network, errs.ErrUnavailable)
}

// Has tells whether an address is one of the container's.
func (l *Lease) Has(a netip.Addr) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.places, func(p place) bool { return slices.Contains(p.member.addrs, a) })
}

func (l *Lease) dial(ctx context.Context, gw *gateway, to netip.AddrPort) (net.Conn, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial %s: %w: the container has ended", to, errs.ErrConflict)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	c, err := gw.connectTo(ctx, to)
	if err != nil {
		if ctx.Err() != nil && l.ctx.Err() == nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("dial %s: %w: %w", to, errs.ErrUnavailable, err)
	}
	return newDialed(l.ctx, c), nil
}

// connectTo opens a connection from the gateway.
func (g *gateway) connectTo(ctx context.Context, to netip.AddrPort) (conn, error) {
	if !g.begin() {
		return conn{}, errs.ErrClosed
	}
	defer g.end()
	from := g.spec.Gateway
	if to.Addr().Is6() {
		from = address6(g.spec.Subnet6, from)
	}
	var wq waiter.Queue
	ep, terr := g.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), &wq)
	if terr != nil {
		return conn{}, errors.New(terr.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr := ep.Bind(fullAddress(netip.AddrPortFrom(from, 0))); terr != nil {
		ep.Close()
		return conn{}, errors.New(terr.String())
	}
	terr = ep.Connect(fullAddress(to))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return conn{}, ctx.Err()
		case <-g.ctx.Done():
			ep.Abort()
			return conn{}, errs.ErrClosed
		case <-ready:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return conn{}, errors.New(terr.String())
	}
	return newConn(&wq, ep), nil
}

// dialed is a connection that ends with the container.
type dialed struct {
	conn
	stop func() bool
}

func newDialed(ctx context.Context, c conn) net.Conn {
	return &dialed{c, context.AfterFunc(ctx, c.Reset)}
}

// Close closes the connection.
func (d *dialed) Close() error {
	d.stop()
	return d.conn.Close()
}
