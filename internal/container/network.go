package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// Ported is a Machine with a place in the networks. A nil Port is one without.
type Ported interface {
	Port() *network.Port
}

func portOf(mach Machine) *network.Port {
	if p, ok := mach.(Ported); ok {
		return p.Port()
	}
	return nil
}

const modeContainer = "container:" // before the id or name of the container whose network is shared

// The bounds of what a container may ask for.
const (
	maxNetworks = 32
	maxPorts    = 1024
)

func checkNetwork(s Spec) error {
	own := s.Network == ""
	switch {
	case own, s.Network == network.ModeNone, s.Network == network.ModeMachine:
	case strings.HasPrefix(s.Network, modeContainer) && len(s.Network) > len(modeContainer):
	default:
		return invalid("network mode", clip(s.Network), "use none, machine, container: and a container, or nothing; name networks in Networks")
	}
	if !own && len(s.Networks)+len(s.Ports) > 0 {
		return invalid("network mode", clip(s.Network), "with it there are no networks and no published ports of its own")
	}
	if len(s.Networks) > maxNetworks || len(s.Ports) > maxPorts {
		return fmt.Errorf("%w: %d networks and %d ports, at most %d and %d", errs.ErrInvalid, len(s.Networks), len(s.Ports), maxNetworks, maxPorts)
	}
	for _, n := range s.Networks {
		if err := n.Validate(); err != nil {
			return err
		}
	}
	seen := make(map[string]bool)
	for _, p := range s.Ports {
		if err := p.Validate(); err != nil {
			return err
		}
		key := fmt.Sprint(first(p.Protocol, "tcp"), p.HostIP, p.HostPort)
		if p.HostPort != 0 && seen[key] {
			return fmt.Errorf("port %d: %w: it is published twice", p.HostPort, errs.ErrInvalid)
		}
		seen[key] = true
	}
	return nil
}

// attachments are the networks that a spec asks for.
func (s Spec) attachments() []network.Attachment {
	switch {
	case s.Network != "":
		return nil
	case len(s.Networks) == 0:
		return []network.Attachment{{Network: network.DefaultName}}
	}
	return s.Networks
}

// reserveNetworks gives a new container its addresses.
func (m *Manager) reserveNetworks(id, name string, s Spec) ([]network.Endpoint, error) {
	if m.cfg.Networks == nil || s.Network != "" {
		return nil, nil
	}
	return m.cfg.Networks.Reserve(network.Owner{ID: id, Name: name}, s.attachments())
}

func (m *Manager) restoreNetworks(i Info) {
	if m.cfg.Networks != nil && i.Spec.Network == "" {
		m.cfg.Networks.Restore(network.Owner{ID: i.ID, Name: i.Name}, i.Endpoints)
	}
}

func (m *Manager) releaseNetworks(id string) {
	if m.cfg.Networks != nil {
		m.cfg.Networks.Release(id)
	}
}

// compileNetwork fills in the network of a request, for a machine.
func (m *Manager) compileNetwork(req *api.CreateRequest, mode string, mach Machine) error {
	req.Network = api.Network{}
	switch {
	case mode == network.ModeMachine:
		req.Network.Mode = api.NetworkMachine
	case strings.HasPrefix(mode, modeContainer):
		return m.shareNetwork(req, strings.TrimPrefix(mode, modeContainer), mach)
	case m.cfg.Networks == nil || portOf(mach) == nil:
	default:
		all, err := m.cfg.Networks.Interfaces(req.ID)
		for _, i := range all {
			req.Network.Interfaces = append(req.Network.Interfaces, wireInterface(i))
		}
		req.Network.Nameservers = nameservers(all)
		return err
	}
	return nil
}

func (m *Manager) shareNetwork(req *api.CreateRequest, ref string, mach Machine) error {
	m.mu.Lock()
	other, err := m.find(ref)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	id, machine := other.id, other.info.Machine
	m.mu.Unlock()
	if id == req.ID || machine != mach.Name() {
		return fmt.Errorf("share the network of container %q: %w: it is the container itself, or in another machine", clip(ref), errs.ErrInvalid)
	}
	req.Network = api.Network{Mode: api.NetworkContainer, Container: id}
	if m.cfg.Networks == nil {
		return nil
	}
	all, err := m.cfg.Networks.Interfaces(id)
	req.Network.Nameservers = nameservers(all)
	return err
}

// nameservers returns whom a container asks for names: first the network by which it gets outside, since another one, that is
// internal, would say of a name of the outside that there is none. Each knows the names of all the container's networks.
func nameservers(all []network.Interface) (out []string) {
	const most = 3 // that resolvers look at
	for _, outside := range []bool{true, false} {
		for _, i := range all {
			for _, a := range i.DNS {
				if len(i.Gateways) > 0 == outside && len(out) < most {
					out = append(out, a.String())
				}
			}
		}
	}
	return out
}

func wireInterface(i network.Interface) api.Interface {
	out := api.Interface{Name: i.Name, VLAN: i.VLAN, MAC: i.MAC, MTU: network.MTU, Reflect: i.Reflect}
	for _, a := range i.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	for _, g := range i.Gateways {
		out.Gateways = append(out.Gateways, g.String())
	}
	return out
}

// goOnline makes a container reachable that is about to be started.
func (m *Manager) goOnline(e *entry, inst *instance) error {
	m.mu.Lock()
	spec := e.info.Spec
	m.mu.Unlock()
	sockets, err := m.publishSockets(e, inst.machine, spec.Sockets)
	if err != nil {
		return err
	}
	lease, err := m.startLease(e, spec, portOf(inst.machine))
	if err != nil {
		closeSockets(sockets)
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.sockets = sockets
	if lease != nil {
		e.lease, e.info.Ports = lease, lease.Published()
	}
	return nil
}

// startLease gives a container that is about to be started its place in its networks.
func (m *Manager) startLease(e *entry, spec Spec, port *network.Port) (*network.Lease, error) {
	if m.cfg.Networks == nil || spec.Network != "" {
		return nil, nil
	}
	if port == nil {
		if len(spec.Networks)+len(spec.Ports) > 0 {
			return nil, fmt.Errorf("start container %q: networks and ports: %w: its machine has no network interface", e.info.Name, errs.ErrUnsupported)
		}
		return nil, nil
	}
	return m.cfg.Networks.Start(e.id, port, spec.Ports)
}

// goOffline makes a container unreachable whose process has ended. The caller holds mu.
func (m *Manager) goOffline(e *entry) {
	lease, sockets := e.lease, e.sockets
	e.lease, e.info.Ports, e.sockets = nil, nil, nil
	for _, s := range sockets {
		s.Stop()
		m.wg.Go(s.Close)
	}
	if lease != nil {
		lease.Stop()
		m.wg.Go(lease.Close)
	}
}

// twin is the network in which containers go on that were in another one.
type twin struct {
	id   string
	same bool // frames find their way in it as in the other one
}

// adoptNetworks gives a container of a machine that goes on its addresses: those that it has, where they are free.
func (m *Manager) adoptNetworks(ctx context.Context, mach Machine, i *Info, twins map[string]twin) (lease *network.Lease, err error) {
	old := i.Endpoints
	i.Endpoints, i.Ports = nil, nil
	port := portOf(mach)
	if m.cfg.Networks == nil || port == nil || i.Spec.Network != "" || len(old) == 0 {
		return nil, nil
	}
	defer func() {
		if err != nil {
			m.cfg.Networks.Release(i.ID)
		}
	}()
	if i.Endpoints, err = m.reserveLike(i, old, twins); err != nil {
		return nil, err
	}
	if i.State != StateRunning && i.State != StatePaused {
		return nil, nil
	}
	if !slices.EqualFunc(old, i.Endpoints, func(a, b network.Endpoint) bool {
		return a.MAC == b.MAC && (a.NetworkID == b.NetworkID || twins[a.NetworkID] == twin{b.NetworkID, true})
	}) {
		all, err := m.cfg.Networks.Interfaces(i.ID)
		if err != nil {
			return nil, err
		}
		req := api.SetNetworkRequest{ID: i.ID}
		for _, e := range old {
			req.Remove = append(req.Remove, e.Interface)
		}
		for _, x := range all {
			req.Set = append(req.Set, wireInterface(x))
		}
		if err := mach.Agent().SetNetwork(ctx, req); err != nil {
			return nil, err
		}
	}
	lease, err = m.cfg.Networks.Start(i.ID, port, i.Spec.Ports)
	if errors.Is(err, errs.ErrConflict) { // the machine it comes from has the ports
		free := slices.Clone(i.Spec.Ports)
		for k := range free {
			free[k].HostPort = 0
		}
		lease, err = m.cfg.Networks.Start(i.ID, port, free)
	}
	i.Ports = lease.Published()
	return lease, err
}

// reserveLike reserves the addresses of another container's endpoints, or others where those are taken. The name that the
// container had is one of its aliases. twins are the networks that stand for others, by id.
func (m *Manager) reserveLike(i *Info, old []network.Endpoint, twins map[string]twin) ([]network.Endpoint, error) {
	wants := make([]network.Attachment, len(old))
	for k, e := range old {
		wants[k] = network.Attachment{Network: e.Network, IPv4: e.IPv4, Aliases: e.Aliases}
		if t, ok := twins[e.NetworkID]; ok {
			wants[k].Network = t.id
		}
		called := wants[k]
		called.Aliases = append(slices.Clip(e.Aliases), i.Name)
		if !slices.Contains(e.Aliases, i.Name) && called.Validate() == nil { // not every name of a container can be one
			wants[k] = called
		}
	}
	o := network.Owner{ID: i.ID, Name: i.Name}
	eps, err := m.cfg.Networks.Reserve(o, wants)
	if err == nil {
		return eps, nil
	}
	for k := range wants {
		wants[k].IPv4 = netip.Addr{}
	}
	return m.cfg.Networks.Reserve(o, wants)
}

// ConnectNetwork adds a container to a network, running or not.
func (m *Manager) ConnectNetwork(ctx context.Context, ref string, a network.Attachment) error {
	return m.changeNetwork(ctx, ref, func(e *entry) (req api.SetNetworkRequest, undo func(), err error) {
		ep, err := m.cfg.Networks.Connect(e.id, a)
		if err != nil {
			return req, nil, err
		}
		undo = func() { _, _ = m.cfg.Networks.Disconnect(e.id, ep.NetworkID) } // it was there a moment ago
		i, err := m.cfg.Networks.InterfaceOf(e.id, ep.NetworkID)
		if err != nil {
			return req, undo, err
		}
		if len(m.cfg.Networks.Endpoints(e.id)) > 1 {
			i.Gateways = nil // the way out does not change under a process that runs
		}
		req.Set = []api.Interface{wireInterface(i)}
		return req, undo, nil
	})
}

// DisconnectNetwork takes a container out of a network, running or not.
func (m *Manager) DisconnectNetwork(ctx context.Context, ref, from string) error {
	return m.changeNetwork(ctx, ref, func(e *entry) (req api.SetNetworkRequest, undo func(), err error) {
		ep, err := m.cfg.Networks.Disconnect(e.id, from)
		req.Remove = []string{ep.Interface}
		return req, func() {}, err
	})
}

// changeNetwork changes the networks of a container, on the host and in the guest.
func (m *Manager) changeNetwork(ctx context.Context, ref string, fn func(*entry) (api.SetNetworkRequest, func(), error)) error {
	if m.cfg.Networks == nil {
		return errs.ErrUnsupported
	}
	e, unlock, err := m.begin(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	req, undo, err := fn(e)
	if err != nil {
		if undo != nil {
			undo()
		}
		return err
	}
	m.mu.Lock()
	inst, ended := e.inst, !e.info.State.live() && e.info.State != StateCreated
	m.mu.Unlock()
	req.ID = e.id
	if inst != nil && !ended && portOf(inst.machine) != nil {
		if err := inst.machine.Agent().SetNetwork(ctx, req); err != nil {
			undo()
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.info.Endpoints = m.cfg.Networks.Endpoints(e.id)
	m.touch(e)
	return nil
}

// Reflect tells the machines of containers that their frames to each other must come to the host, or need not any more.
func (m *Manager) Reflect(ctx context.Context, ids []string) error {
	var failed []error
	for _, id := range ids {
		e, unlock, err := m.begin(ctx, id)
		if err != nil {
			continue // it was removed
		}
		m.mu.Lock()
		inst, live := e.inst, e.info.State.live() || e.info.State == StateCreated
		m.mu.Unlock()
		if inst != nil && live && portOf(inst.machine) != nil {
			all, err := m.cfg.Networks.Interfaces(id)
			req := api.SetNetworkRequest{ID: id}
			for _, i := range all {
				req.Set = append(req.Set, wireInterface(i))
			}
			if err == nil {
				err = inst.machine.Agent().SetNetwork(ctx, req)
			}
			failed = append(failed, err)
		}
		unlock()
	}
	return errors.Join(failed...)
}

// DialNetwork connects to one of a running container's addresses by the networks, without its machine's agent; host is
// zero for any. ok is false where it has no address of the kind.
func (m *Manager) DialNetwork(ctx context.Context, ref, network string, host netip.Addr, port string) (c net.Conn, ok bool, err error) {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	lease := e.lease
	m.mu.Unlock()
	n, perr := strconv.ParseUint(port, 10, 16)
	if lease == nil || !strings.HasPrefix(network, "tcp") || perr != nil || n == 0 || host.IsValid() && !lease.Has(host) {
		return nil, false, nil
	}
	c, err = lease.Dial(ctx, network, host, uint16(n))
	return c, true, err
}
