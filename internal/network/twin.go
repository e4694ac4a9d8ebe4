package network

import (
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Saved is a network as the snapshot of a machine has it: what its containers know of it, who go on in another machine.
type Saved struct {
	ID         string `json:"id"`
	VLAN       uint16 `json:"vlan"`
	Programmed bool   `json:"programmed,omitempty"` // it has a Dial function
	Spec       Spec   `json:"spec"`                 // with the subnets that it has
}

// maxTwinBase bounds what the name of a twin has of its network's, so that a machine's name fits behind it.
const maxTwinBase = 60

// Save returns the networks with the ids, those that there are.
func (m *Manager) Save(ids map[string]bool) []Saved {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Saved
	for id := range ids {
		if n := m.networks[id]; n != nil {
			spec := n.spec.clone()
			spec.Dial, spec.Resolve = nil, nil
			out = append(out, Saved{n.id, n.vlan, n.orphan || n.spec.Dial != nil, spec})
		}
	}
	return out
}

// Twin returns the network in which the containers of a machine go on that was made from a snapshot: with the addresses of
// the saved one, so that nothing changes for them, and nobody else in it. own says that the snapshot's networks have their
// own names here: one that is there with the same addresses is the one. Otherwise, or where the name is taken, the
// machine's name is added. It is made where it is not there, with the functions of the saved one where this Manager has
// that; lasting keeps it for later programs. RemoveTwins removes it.
func (m *Manager) Twin(s Saved, machine string, own, lasting bool) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Info{}, errs.ErrClosed
	}
	same := func(o Spec) bool {
		return o.Subnet == s.Spec.Subnet && o.Gateway == s.Spec.Gateway && o.IPv6 == s.Spec.IPv6 && o.Subnet6 == s.Spec.Subnet6
	}
	base := s.Spec.Name[:min(len(s.Spec.Name), maxTwinBase)]
	name := s.Spec.Name
	if !own {
		name = base + "-" + machine
	}
	for i := 0; ; i++ {
		n, err := m.find(name)
		if err != nil || n.spec.Name != name {
			break
		}
		if same(n.spec) && (own && n.machine == "" || n.machine == machine) {
			return m.info(n), nil
		}
		if name = base + "-" + machine; i > 0 {
			name = fmt.Sprintf("%s-%d", name, i)
		}
	}
	vlan, err := m.freeVLAN()
	if err != nil {
		return Info{}, err
	}
	spec := s.Spec.clone()
	spec.Name = name
	orphan := s.Programmed
	if from := m.networks[s.ID]; from != nil {
		orphan, spec.Dial, spec.Resolve = from.orphan, from.spec.Dial, from.spec.Resolve
	}
	if err := spec.Validate(); err != nil {
		return Info{}, fmt.Errorf("network %.100q of the snapshot: %w", s.Spec.Name, err)
	}
	if !spec.Subnet.IsValid() || !spec.Gateway.IsValid() || spec.IPv6 != spec.Subnet6.IsValid() {
		return Info{}, fmt.Errorf("network %.100q of the snapshot: %w: it lacks what a network has", s.Spec.Name, errs.ErrCorrupt)
	}
	n := newNetwork(newID(), vlan, spec, time.Now())
	n.machine, n.orphan, n.passing = machine, orphan, !lasting
	if err := m.save(n); err != nil {
		return Info{}, err
	}
	m.networks[n.id] = n
	return m.info(n), nil
}

// RemoveTwins removes the networks that Twin has made for a machine that is no more, and in which no container is left.
func (m *Manager) RemoveTwins(gone func(machine string) bool) {
	m.mu.Lock()
	var ids []string
	for id, n := range m.networks {
		if n.machine != "" && gone(n.machine) {
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	for _, id := range ids {
		if _, err := m.Remove(id); err != nil {
			m.log.Debug("remove the network of a machine that was removed", "id", id, "err", err)
		}
	}
}
