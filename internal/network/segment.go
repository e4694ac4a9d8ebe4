package network

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// segment is the Ethernet of one network. Frames go through it without a lock: what it looks at is replaced, not changed.
type segment struct {
	vlan    uint16
	buffers *buffers
	gateway mac
	link    *link // the gateway's

	mu    sync.Mutex // held to replace table
	table atomic.Pointer[table]
}

// table is who is on a segment.
type table struct {
	members map[mac]*member
	addrs   map[netip.Addr]*member
	names   map[string][]*member
	ports   map[*Port]int // how many members are there
	lines   *lines        // where the network has faults; nil is none
}

// member is a container that is on the segment.
type member struct {
	owner Owner
	mac   mac
	addrs []netip.Addr
	names []string // normal ones
	port  *Port
	lease *Lease
}

func newSegment(vlan uint16, gateway mac, b *buffers) *segment {
	s := &segment{vlan: vlan, gateway: gateway, buffers: b}
	s.table.Store(&table{})
	return s
}

// change replaces the members, or what else there is, by what fn makes of a copy.
func (s *segment) change(fn func(*table)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := *s.table.Load()
	t.members = maps.Clone(t.members)
	if t.members == nil {
		t.members = make(map[mac]*member)
	}
	fn(&t)
	t.addrs, t.names, t.ports = make(map[netip.Addr]*member), make(map[string][]*member), make(map[*Port]int)
	for _, m := range t.members {
		t.ports[m.port]++
		for _, a := range m.addrs {
			t.addrs[a] = m
		}
		for _, n := range m.names {
			t.names[n] = append(t.names[n], m)
		}
	}
	s.table.Store(&t)
}

func (s *segment) add(m *member) { s.change(func(t *table) { t.members[m.mac] = m }) }

func (s *segment) remove(m *member) {
	s.change(func(t *table) {
		if t.members[m.mac] == m {
			delete(t.members, m.mac)
		}
	})
}

// has tells that the member may send with the address. Link-local addresses of IPv6 are made by itself, and before it has
// any it speaks with none.
func (m *member) has(a netip.Addr) bool {
	return slices.Contains(m.addrs, a) || a.Is6() && (a.IsLinkLocalUnicast() || a.IsUnspecified())
}

// fromPort takes a frame from a machine. It does not keep it.
func (s *segment) fromPort(p *Port, f frame) {
	t := s.table.Load()
	m := t.members[f.src()]
	if m == nil || m.port != p {
		return // nobody, or one of another machine
	}
	if a, ok := f.from(); !ok || !m.has(a) {
		return
	}
	s.forward(t, m, f)
}

// fromGateway takes a frame that the gateway sends. It takes the packet.
func (s *segment) fromGateway(pkt packet) {
	s.forward(s.table.Load(), nil, pkt.frame())
	s.buffers.put(pkt)
}

// forward hands copies of a frame to whom it is for. from is nil for the gateway.
func (s *segment) forward(t *table, from *member, f frame) {
	dst := f.dst()
	switch to := t.members[dst]; {
	case to != nil:
		s.pass(t, from, to, f)
	case dst.group():
		if from != nil {
			s.pass(t, from, nil, f)
		}
		s.flood(t, from, f)
	case from != nil && dst == s.gateway:
		s.pass(t, from, nil, f)
	}
}

// flood sends a frame to the members on all ports, once for each port: macvlan in the machine hands it to each of them.
// Where there are faults it must be known for whom it is, and each gets its own.
func (s *segment) flood(t *table, from *member, f frame) {
	if t.lines != nil {
		for _, to := range t.members {
			if to != from {
				s.pass(t, from, to, f)
			}
		}
		return
	}
	for p := range t.ports {
		if from == nil || p != from.port {
			p.send(s.buffers.copyOf(f), s.vlan)
		}
	}
}

// pass hands a frame to one member, nil for the gateway, as far as faults let it.
func (s *segment) pass(t *table, from, to *member, f frame) {
	if t.lines != nil && !t.lines.admit(from, to, f) {
		return
	}
	s.deliver(t, from, to, f)
}

// deliver hands a frame over. Members of one machine hear each other without the host, unless there are faults.
func (s *segment) deliver(t *table, from, to *member, f frame) {
	if to == nil {
		s.link.receive(f)
		return
	}
	if from != nil && from.port == to.port && t.lines == nil {
		return
	}
	pkt := s.buffers.copyOf(f)
	if g := pkt.frame(); g.dst().group() && t.lines != nil {
		copy(g[:6], to.mac[:]) // for this one only
	}
	to.port.send(pkt, s.vlan)
}
