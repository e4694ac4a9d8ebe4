package network

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// pool is where the subnets of networks are taken from that name none, and poolBits how large they are.
func pool() netip.Prefix { return netip.MustParsePrefix("10.208.0.0/12") }

const poolBits = 20

// chooseSubnets fills in the subnets of a network, and refuses those that another one has. m.mu is held.
func (m *Manager) chooseSubnets(s *Spec) error {
	if s.Subnet.IsValid() {
		if n := m.overlapping(s.Subnet); n != nil {
			return fmt.Errorf("subnet %s: %w: it overlaps %s of network %q", s.Subnet, errs.ErrConflict, n.spec.Subnet, n.spec.Name)
		}
	} else if err := m.freeSubnet(s); err != nil {
		return err
	}
	if !s.Gateway.IsValid() {
		s.Gateway = s.Subnet.Addr().Next()
	}
	if s.Subnet6.IsValid() {
		s.IPv6 = true
		for _, n := range m.networks {
			if n.spec.IPv6 && n.spec.Subnet6.Overlaps(s.Subnet6) {
				return fmt.Errorf("IPv6 subnet %s: %w: it overlaps %s of network %q", s.Subnet6, errs.ErrConflict, n.spec.Subnet6, n.spec.Name)
			}
		}
	} else if s.IPv6 {
		b := [16]byte{0xfd} // a unique local prefix, as of RFC 4193
		_, _ = rand.Read(b[1:8])
		s.Subnet6 = netip.PrefixFrom(netip.AddrFrom16(b), 64)
	}
	return nil
}

func (m *Manager) overlapping(p netip.Prefix) *network {
	for _, n := range m.networks {
		if n.spec.Subnet.Overlaps(p) {
			return n
		}
	}
	return nil
}

// freeSubnet gives a network the first subnet of the pool that nobody has.
func (m *Manager) freeSubnet(s *Spec) error {
	taken := m.cfg.Taken()
	for i := range uint32(1) << (poolBits - pool().Bits()) {
		b := pool().Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+i<<(32-poolBits))
		p := netip.PrefixFrom(netip.AddrFrom4(b), poolBits)
		free := m.overlapping(p) == nil
		for _, t := range taken {
			free = free && (t.Bits() == 0 || !t.Overlaps(p))
		}
		if free {
			s.Subnet = p
			return nil
		}
	}
	return fmt.Errorf("%w: no subnet of %s is free: remove networks, or name a subnet", errs.ErrUnavailable, pool())
}

// address6 returns the IPv6 address that goes with an IPv4 one: that is its last four bytes.
func address6(p netip.Prefix, a netip.Addr) netip.Addr {
	b, four := p.Addr().As16(), a.As4()
	copy(b[12:], four[:])
	return netip.AddrFrom16(b)
}

// take gives out an address: the one that is wanted, or a free one. Those that were given back last come last.
func (n *network) take(want netip.Addr, id string) (netip.Addr, error) {
	if want.IsValid() {
		if !usable(n.spec.Subnet, want) {
			return want, invalid("address", want, fmt.Sprintf("network %q has %s", n.spec.Name, n.spec.Subnet))
		}
		if of, taken := n.used[want]; taken {
			return want, fmt.Errorf("address %s of network %q: %w: %s has it", want, n.spec.Name, errs.ErrConflict, short(of))
		}
		n.used[want] = id
		return want, nil
	}
	size := uint64(1) << (32 - n.spec.Subnet.Bits())
	for range min(size, uint64(len(n.used))+4) {
		if n.next = n.next.Next(); !n.spec.Subnet.Contains(n.next) {
			n.next = n.spec.Subnet.Addr().Next()
		}
		if _, taken := n.used[n.next]; !taken && usable(n.spec.Subnet, n.next) {
			n.used[n.next] = id
			return n.next, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: network %q has no free address in %s: remove containers, or make a larger network", errs.ErrUnavailable, n.spec.Name, n.spec.Subnet)
}

func short(id string) string {
	if len(id) == 64 {
		return "container " + id[:12]
	}
	return id
}
