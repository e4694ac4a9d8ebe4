package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Attachment says how a container shall be in a network.
type Attachment struct {
	Network string     `json:"network"`       // id or name
	IPv4    netip.Addr `json:"ipv4,omitzero"` // zero is a free one
	Aliases []string   `json:"aliases,omitempty"`
}

const maxAliases = 64

// Validate checks what can be checked without the network.
func (a Attachment) Validate() error {
	if a.Network == "" || len(a.Network) > 128 {
		return invalid("network", a.Network, "name one")
	}
	if a.IPv4.IsValid() && !a.IPv4.Is4() {
		return invalid("address", a.IPv4, "use one of IPv4: that of IPv6 goes with it")
	}
	if len(a.Aliases) > maxAliases {
		return fmt.Errorf("%w: %d aliases in network %q are more than %d", errs.ErrInvalid, len(a.Aliases), a.Network, maxAliases)
	}
	for _, alias := range a.Aliases {
		if !aliasPattern.MatchString(alias) {
			return invalid("alias", alias, "use 1 to 128 letters, digits, '_', '.' and '-', the first and last a letter, digit or '_'")
		}
	}
	return nil
}

// Reserve gives a new container its place in networks, or in none of them.
func (m *Manager) Reserve(o Owner, wants []Attachment) (_ []Endpoint, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	own := &owner{Owner: o}
	defer func() {
		if err != nil {
			m.giveBack(own)
		}
	}()
	for _, w := range wants {
		if _, err := m.connect(own, w); err != nil {
			return nil, err
		}
	}
	m.owners[o.ID] = own
	return slices.Clone(own.endpoints), nil
}

// connect adds an endpoint. m.mu is held.
func (m *Manager) connect(o *owner, w Attachment) (Endpoint, error) {
	if err := w.Validate(); err != nil {
		return Endpoint{}, err
	}
	n, err := m.find(w.Network)
	if err != nil {
		return Endpoint{}, err
	}
	taken := make(map[string]bool)
	for _, e := range o.endpoints {
		if e.NetworkID == n.id {
			return Endpoint{}, fmt.Errorf("connect container %q to network %q: %w: it is there already", o.Name, n.spec.Name, errs.ErrExists)
		}
		taken[e.Interface] = true
	}
	ip, err := n.take(w.IPv4, o.ID)
	if err != nil {
		return Endpoint{}, err
	}
	i := 0
	for taken["eth"+strconv.Itoa(i)] {
		i++
	}
	e := Endpoint{
		NetworkID: n.id, Network: n.spec.Name, Interface: "eth" + strconv.Itoa(i), MAC: macOf(ip).String(), IPv4: ip,
		Aliases: slices.Clone(w.Aliases),
	}
	if n.spec.IPv6 {
		e.IPv6 = address6(n.spec.Subnet6, ip)
	}
	o.endpoints = append(o.endpoints, e)
	return e, nil
}

// giveBack frees the addresses of a container. m.mu is held.
func (m *Manager) giveBack(o *owner) {
	for _, e := range o.endpoints {
		if n := m.networks[e.NetworkID]; n != nil {
			delete(n.used, e.IPv4)
		}
	}
	o.endpoints = nil
}

// Restore takes up the place of a container from its record. What cannot be had any more is left out, and told of.
func (m *Manager) Restore(o Owner, endpoints []Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := &owner{Owner: o}
	m.owners[o.ID] = own
	for _, e := range endpoints {
		n, err := m.find(e.NetworkID)
		if err != nil {
			n, err = m.find(e.Network)
		}
		if err == nil {
			_, err = n.take(e.IPv4, o.ID)
		}
		if err != nil || e.MAC != macOf(e.IPv4).String() {
			m.log.Warn("a container has lost its place in a network", "container", o.Name, "network", e.Network, "err", err)
			continue
		}
		e.NetworkID, e.Network = n.id, n.spec.Name
		if e.IPv6 = (netip.Addr{}); n.spec.IPv6 {
			e.IPv6 = address6(n.spec.Subnet6, e.IPv4)
		}
		own.endpoints = append(own.endpoints, e)
	}
}

// Release ends the place of a container that is removed. One that is not known does nothing. A lease is stopped.
func (m *Manager) Release(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.owners[id]; o != nil {
		o.lease.Stop()
		m.giveBack(o)
		delete(m.owners, id)
	}
}

// Connect adds a container to a network. Where it runs, the network reaches it from now on.
func (m *Manager) Connect(id string, w Attachment) (Endpoint, error) {
	m.mu.Lock()
	o, err := m.owner(id)
	if err != nil {
		m.mu.Unlock()
		return Endpoint{}, err
	}
	e, err := m.connect(o, w)
	lease := o.lease
	m.mu.Unlock()
	if err == nil && lease != nil {
		if err = m.join(lease, o.Owner, e); err != nil {
			_, derr := m.Disconnect(id, e.NetworkID)
			m.log.Debug("give up the place in a network", "container", o.Name, "err", derr)
		}
	}
	return e, err
}

// Disconnect takes a container out of a network. What it has open there ends.
func (m *Manager) Disconnect(id, ref string) (Endpoint, error) {
	m.mu.Lock()
	o, err := m.owner(id)
	var n *network
	if err == nil {
		n, err = m.find(ref)
	}
	if err != nil {
		m.mu.Unlock()
		return Endpoint{}, err
	}
	i := slices.IndexFunc(o.endpoints, func(e Endpoint) bool { return e.NetworkID == n.id })
	if i < 0 {
		m.mu.Unlock()
		return Endpoint{}, fmt.Errorf("disconnect container %q from network %q: %w: it is not there", o.Name, n.spec.Name, errs.ErrConflict)
	}
	e := o.endpoints[i]
	o.endpoints = slices.Delete(slices.Clone(o.endpoints), i, i+1)
	delete(n.used, e.IPv4)
	lease := o.lease
	m.mu.Unlock()
	lease.leave(e)
	return e, nil
}

func (m *Manager) owner(id string) (*owner, error) {
	if m.closed {
		return nil, errs.ErrClosed
	}
	o := m.owners[id]
	if o == nil {
		return nil, fmt.Errorf("container %.100q has no networks of its own: %w", id, errs.ErrConflict)
	}
	return o, nil
}

// Endpoints returns the places of a container in networks.
func (m *Manager) Endpoints(id string) []Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.owners[id]; o != nil {
		return slices.Clone(o.endpoints)
	}
	return nil
}

// Rename changes the name by which a container is found.
func (m *Manager) Rename(id, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.owners[id]; o != nil {
		o.Name = name
		o.lease.rename(o.Owner, o.endpoints)
	}
}

// Interface is what a container's interface must be in its machine.
type Interface struct {
	Name      string
	VLAN      uint16
	MAC       string
	Addresses []netip.Prefix
	Gateways  []netip.Addr // of the default routes
	DNS       []netip.Addr
	Reflect   bool // frames to others in the machine must come to the host as well
}

// Interfaces returns what a container needs in its machine. One of them at most has gateways.
func (m *Manager) Interfaces(id string) ([]Interface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.owners[id]
	if o == nil {
		return nil, nil
	}
	route := slices.IndexFunc(o.endpoints, func(e Endpoint) bool {
		n := m.networks[e.NetworkID]
		return n != nil && !n.spec.Internal
	})
	out := make([]Interface, 0, len(o.endpoints))
	for i, e := range o.endpoints {
		n := m.networks[e.NetworkID]
		if n == nil {
			return nil, fmt.Errorf("network %q %w: it was removed", e.Network, errs.ErrNotFound)
		}
		out = append(out, n.iface(e, i == max(route, 0)))
	}
	return out, nil
}

// iface is the interface of an endpoint. m.mu is held.
func (n *network) iface(e Endpoint, route bool) Interface {
	i := Interface{
		Name: e.Interface, VLAN: n.vlan, MAC: e.MAC, DNS: []netip.Addr{n.spec.Gateway}, Reflect: len(n.faults) > 0,
		Addresses: []netip.Prefix{netip.PrefixFrom(e.IPv4, n.spec.Subnet.Bits())},
	}
	if n.spec.IPv6 {
		i.Addresses = append(i.Addresses, netip.PrefixFrom(e.IPv6, n.spec.Subnet6.Bits()))
	}
	if route {
		i.Gateways = gatewayAddrs(n.spec)
	}
	return i
}

// InterfaceOf returns the interface of a container in one network, without routes where it has others.
func (m *Manager) InterfaceOf(id, network string) (Interface, error) {
	all, err := m.Interfaces(id)
	if err != nil {
		return Interface{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(network)
	if err != nil {
		return Interface{}, err
	}
	for _, i := range all {
		if i.VLAN == n.vlan {
			return i, nil
		}
	}
	return Interface{}, fmt.Errorf("interface in network %q %w", network, errs.ErrNotFound)
}
