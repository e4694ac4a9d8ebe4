package network

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// serviceName is a name of the host in a network, with an address of its own.
type serviceName struct {
	addr  netip.Addr
	ports map[uint16]bool
}

// listener is a listener on a network.
type listener struct {
	*gonet.TCPListener
	m    *Manager
	n    *network
	gw   *gateway
	name string
	port uint16
	once sync.Once
	addr netip.AddrPort
}

// Listen lets containers of a network reach the program by a name and a port. A name that a container or another listener
// has is ErrExists. Close the listener.
func (m *Manager) Listen(ref, name string, port uint16) (net.Listener, error) {
	if !aliasPattern.MatchString(name) {
		return nil, invalid("name to listen on", name, "use 1 to 128 letters, digits, '_', '.' and '-', the first and last a letter, digit or '_'")
	}
	if port == 0 {
		return nil, invalid("port to listen on", port, "use 1 to 65535")
	}
	m.mu.Lock()
	n, err := m.find(ref)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	gw, err := m.gateway(n)
	if err != nil {
		return nil, err
	}
	l := &listener{m: m, n: n, gw: gw, name: normal(name), port: port}
	if err := l.reserve(); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.addr.Addr(), port)
	if l.TCPListener, err = gonet.ListenTCP(gw.stack, fullAddress(at), protocolOf(at.Addr())); err != nil {
		l.release()
		return nil, fmt.Errorf("listen on %s port %d in network %q: %w: %w", name, port, gw.name, errs.ErrUnavailable, err)
	}
	m.mu.Lock()
	n.listens[l] = struct{}{}
	closed := m.closed
	m.mu.Unlock()
	if closed {
		l.Close()
		return nil, errs.ErrClosed
	}
	return l, nil
}

// reserve takes the name, and the address that goes with it.
func (l *listener) reserve() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	s := l.n.names[l.name]
	if s == nil {
		for _, o := range l.m.owners {
			for _, e := range o.endpoints {
				if e.NetworkID != l.n.id {
					continue
				}
				for _, other := range namesOf(o.Owner, e) {
					if other == l.name {
						return fmt.Errorf("name %q in network %q %w: container %s has it", l.name, l.n.spec.Name, errs.ErrExists, o.Name)
					}
				}
			}
		}
		a, err := l.n.take(netip.Addr{}, "the listener "+l.name)
		if err != nil {
			return err
		}
		if err := l.gw.addAddress(a); err != nil {
			delete(l.n.used, a)
			return err
		}
		s = &serviceName{addr: a, ports: make(map[uint16]bool)}
		l.n.names[l.name] = s
		l.gw.dns.set(l.name, []netip.Addr{a})
	}
	if s.ports[l.port] {
		return fmt.Errorf("listen on %s port %d in network %q: %w: something listens there", l.name, l.port, l.n.spec.Name, errs.ErrExists)
	}
	s.ports[l.port] = true
	l.addr = netip.AddrPortFrom(s.addr, l.port)
	return nil
}

func (l *listener) release() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.n.listens, l)
	s := l.n.names[l.name]
	if s == nil {
		return
	}
	delete(s.ports, l.port)
	if len(s.ports) == 0 {
		delete(l.n.names, l.name)
		delete(l.n.used, s.addr)
		l.gw.dns.set(l.name, nil)
		l.gw.removeAddress(s.addr)
	}
}

// Accept waits for a connection of a container.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil {
		return nil, fmt.Errorf("accept on %s port %d: %w", l.name, l.port, net.ErrClosed)
	}
	return c, nil
}

// Close ends the listening. An Accept under way returns net.ErrClosed. A second call does nothing.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.TCPListener.Shutdown() // wakes who waits
		_ = l.TCPListener.Close()
		l.release()
	})
	return nil
}

// set gives a name its addresses, or takes it away.
func (d *dnsServer) set(name string, addrs []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addrs == nil {
		delete(d.services, name)
		return
	}
	d.services[name] = addrs
}
