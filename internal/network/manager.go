package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ids"
)

// Config configures a Manager. The zero value works.
type Config struct {
	Dir      string       // where records are kept; "" keeps them in memory
	Logger   *slog.Logger // nil is silent
	Dial     DialFunc     // of networks without one of their own; nil dials the host's way
	Resolver Resolver     // nil is the host's

	// Echo sends an ICMP echo request and returns the data of the reply. nil does so from the host.
	Echo func(ctx context.Context, to netip.Addr, data []byte) ([]byte, error)
	// Taken returns the subnets that a free one must not overlap. nil takes those of the host's interfaces.
	Taken func() []netip.Prefix
}

// Manager has the networks of a Runtime, and knows which container has which address in them. Make one with New and close
// it. Its methods may be called from many goroutines.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	buffers  buffers
	segments [4096]atomic.Pointer[segment] // by VLAN
	change   sync.Mutex                    // held while a gateway starts or ends

	mu       sync.Mutex
	closed   bool
	networks map[string]*network // by id
	owners   map[string]*owner   // by id
	ports    map[*Port]struct{}
}

// network is one network. All is under Manager.mu but what is said to be constant.
type network struct {
	id      string    // constant
	vlan    uint16    // constant
	created time.Time // constant
	machine string    // constant: the one for which Twin has made it; "" is none
	passing bool      // constant: it has no record
	spec    Spec
	orphan  bool                  // its functions were of a program that has ended: nothing leaves it
	used    map[netip.Addr]string // IPv4 addresses, with whose they are
	next    netip.Addr            // where the search for a free one goes on
	faults  []Fault
	gw      *gateway // nil until somebody needs it
	listens map[*listener]struct{}
	names   map[string]*serviceName // of listens
}

// Owner is a container.
type Owner struct {
	ID   string
	Name string
}

// owner is a container with its addresses.
type owner struct {
	Owner
	endpoints []Endpoint
	lease     *Lease
}

// Endpoint is a container's place in a network. It is part of the container's record.
type Endpoint struct {
	NetworkID string     `json:"network_id"`
	Network   string     `json:"network"` // name
	Interface string     `json:"interface"`
	MAC       string     `json:"mac"`
	IPv4      netip.Addr `json:"ipv4"`
	IPv6      netip.Addr `json:"ipv6,omitzero"`
	Aliases   []string   `json:"aliases,omitempty"`
}

// New returns a Manager with the networks whose records are in Config.Dir, and the default one.
func New(cfg Config) (*Manager, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = hostDial
	}
	if cfg.Resolver == nil {
		cfg.Resolver = &net.Resolver{}
	}
	if cfg.Echo == nil {
		cfg.Echo = hostEcho
	}
	if cfg.Taken == nil {
		cfg.Taken = hostSubnets
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger,
		networks: make(map[string]*network), owners: make(map[string]*owner), ports: make(map[*Port]struct{}),
	}
	if cfg.Dir != "" {
		if err := m.load(); err != nil {
			return nil, err
		}
	}
	if _, err := m.find(DefaultName); err != nil {
		if _, err := m.create(Spec{Name: DefaultName}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// hostSubnets returns the subnets of the host's interfaces.
func hostSubnets() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // there may be a conflict then, as with any subnet that is behind a router
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if p, err := netip.ParsePrefix(n.String()); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// Close ends all connections, unplugs all machines, and returns when nothing of the Manager runs any more. What it is
// asked after that is ErrClosed.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	var leases []*Lease
	var listens []*listener
	for _, o := range m.owners {
		if o.lease != nil {
			leases = append(leases, o.lease)
		}
	}
	var gateways []*network
	for _, n := range m.networks {
		gateways = append(gateways, n)
		for l := range n.listens {
			listens = append(listens, l)
		}
	}
	var ports []*Port
	for p := range m.ports {
		ports = append(ports, p)
	}
	m.mu.Unlock()
	for _, l := range leases {
		l.Close()
	}
	for _, l := range listens {
		_ = l.Close() // returns nil
	}
	for _, p := range ports {
		_ = p.Close() // returns nil
	}
	for _, n := range gateways {
		m.stopGateway(n)
	}
}

func (m *Manager) segment(vlan uint16) *segment { return m.segments[vlan].Load() }

// Create makes a network.
func (m *Manager) Create(spec Spec) (Info, error) {
	if err := spec.Validate(); err != nil {
		return Info{}, err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return Info{}, errs.ErrClosed
	}
	if n, err := m.find(spec.Name); err == nil && n.spec.Name == spec.Name && n.orphan {
		defer m.mu.Unlock()
		return m.adopt(n, spec)
	}
	m.mu.Unlock()
	return m.create(spec.clone())
}

// adopt gives a network of an earlier program the functions it had. m.mu is held.
func (m *Manager) adopt(n *network, spec Spec) (Info, error) {
	if spec.Subnet.IsValid() && spec.Subnet != n.spec.Subnet || spec.Gateway.IsValid() && spec.Gateway != n.spec.Gateway {
		return Info{}, fmt.Errorf("network %q %w, with the subnet %s: leave the subnet out, or remove it first", spec.Name, errs.ErrExists, n.spec.Subnet)
	}
	if n.gw != nil {
		return Info{}, fmt.Errorf("network %q %w: containers run in it, without the functions it had: stop them first", spec.Name, errs.ErrInUse)
	}
	subnets := n.spec
	n.spec = spec.clone()
	n.spec.Subnet, n.spec.Gateway, n.spec.IPv6, n.spec.Subnet6 = subnets.Subnet, subnets.Gateway, subnets.IPv6, subnets.Subnet6
	n.orphan = false
	return m.info(n), m.save(n)
}

func (m *Manager) create(spec Spec) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.networks {
		if n.spec.Name == spec.Name {
			return Info{}, fmt.Errorf("network name %q %w: it belongs to %s; remove that or choose another name", spec.Name, errs.ErrExists, n.id[:12])
		}
	}
	vlan, err := m.freeVLAN()
	if err != nil {
		return Info{}, err
	}
	if err := m.chooseSubnets(&spec); err != nil {
		return Info{}, err
	}
	n := newNetwork(newID(), vlan, spec, time.Now())
	if err := m.save(n); err != nil {
		return Info{}, err
	}
	m.networks[n.id] = n
	return m.info(n), nil
}

func newNetwork(id string, vlan uint16, spec Spec, created time.Time) *network {
	return &network{
		id: id, vlan: vlan, spec: spec, created: created, next: spec.Subnet.Addr(),
		used:    map[netip.Addr]string{spec.Gateway: "the gateway"},
		listens: make(map[*listener]struct{}), names: make(map[string]*serviceName),
	}
}

func (m *Manager) freeVLAN() (uint16, error) {
	taken := make(map[uint16]bool)
	for _, n := range m.networks {
		taken[n.vlan] = true
	}
	for v := uint16(2); v < 4095; v++ { // 0, 1 and 4095 mean something else
		if !taken[v] {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: there are %d networks: remove some", errs.ErrUnavailable, len(m.networks))
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never returns an error
	return hex.EncodeToString(b[:])
}

// find returns the network with the id, the name, or the unique prefix of an id. m.mu is held.
func (m *Manager) find(ref string) (*network, error) {
	if m.closed {
		return nil, errs.ErrClosed
	}
	if n := m.networks[ref]; n != nil {
		return n, nil
	}
	for _, n := range m.networks {
		if n.spec.Name == ref {
			return n, nil
		}
	}
	id, err := ids.Find("network", ref, maps.Keys(m.networks))
	return m.networks[id], err
}

// info is what there is of a network. m.mu is held.
func (m *Manager) info(n *network) Info {
	i := Info{ID: n.id, VLAN: n.vlan, Created: n.created, Spec: n.spec.clone()}
	for _, o := range m.owners {
		for _, e := range o.endpoints {
			if e.NetworkID == n.id {
				i.Members, i.Owners = append(i.Members, e), append(i.Owners, o.Owner)
			}
		}
	}
	return i
}

// Inspect returns one network.
func (m *Manager) Inspect(ref string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(ref)
	if err != nil {
		return Info{}, err
	}
	return m.info(n), nil
}

// List returns networks, the oldest first.
func (m *Manager) List(f Filter) ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	var all []*network
	for _, n := range m.networks {
		if f.fits(n.spec) {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *network) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id)) })
	out := make([]Info, len(all))
	for i, n := range all {
		out[i] = m.info(n)
	}
	return out, nil
}

// Remove removes a network. One that has containers is ErrInUse, the default one ErrConflict.
func (m *Manager) Remove(ref string) (Info, error) {
	m.mu.Lock()
	n, err := m.find(ref)
	if err == nil {
		err = m.removable(n)
	}
	if err != nil {
		m.mu.Unlock()
		return Info{}, err
	}
	info := m.info(n)
	if err := m.unsave(n); err != nil {
		m.mu.Unlock()
		return Info{}, err
	}
	delete(m.networks, n.id)
	var listens []*listener
	for l := range n.listens {
		listens = append(listens, l)
	}
	m.mu.Unlock()
	for _, l := range listens {
		_ = l.Close() // returns nil
	}
	m.stopGateway(n)
	return info, nil
}

func (m *Manager) removable(n *network) error {
	if n.spec.Name == DefaultName {
		return fmt.Errorf("remove network %q: %w: there is always a default network", n.spec.Name, errs.ErrConflict)
	}
	i := m.info(n)
	if len(i.Owners) > 0 {
		return fmt.Errorf("network %q %w: it has %d containers, %s among them: remove or disconnect them first",
			n.spec.Name, errs.ErrInUse, len(i.Owners), i.Owners[0].Name)
	}
	return nil
}

// Prune removes the networks without containers and listeners but for the default one, and returns them.
func (m *Manager) Prune() ([]Info, error) {
	all, err := m.List(Filter{})
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, i := range all {
		m.mu.Lock()
		n := m.networks[i.ID]
		skip := n == nil || len(n.listens) > 0 || m.removable(n) != nil
		m.mu.Unlock()
		if skip {
			continue
		}
		if i, err := m.Remove(i.ID); err == nil {
			out = append(out, i)
		}
	}
	return out, nil
}

// gateway returns the gateway of a network, and starts it where it does not run.
func (m *Manager) gateway(n *network) (*gateway, error) {
	m.change.Lock()
	defer m.change.Unlock()
	m.mu.Lock()
	gw, spec, closed := n.gw, n.spec, m.closed || m.networks[n.id] != n
	if n.orphan {
		spec.Dial = func(context.Context, Flow) (net.Conn, error) {
			return nil, fmt.Errorf("network %q: %w: the dial function it was made with ended with its program: create it again", spec.Name, errs.ErrUnavailable)
		}
	}
	faults := n.faults
	m.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("use network %q: %w", spec.Name, errs.ErrClosed)
	}
	if gw != nil {
		return gw, nil
	}
	seg := newSegment(n.vlan, macOf(spec.Gateway), &m.buffers)
	gw, err := newGateway(spec, seg, m.cfg, m.ours)
	if err != nil {
		return nil, err
	}
	seg.setFaults(faults)
	m.mu.Lock()
	n.gw = gw
	m.mu.Unlock()
	m.segments[n.vlan].Store(seg)
	return gw, nil
}

// ours tells whether an address is in one of the networks.
func (m *Manager) ours(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.networks {
		if n.spec.Subnet.Contains(a) || n.spec.IPv6 && n.spec.Subnet6.Contains(a) {
			return true
		}
	}
	return false
}

func (m *Manager) stopGateway(n *network) {
	m.change.Lock()
	defer m.change.Unlock()
	m.mu.Lock()
	gw := n.gw
	n.gw = nil
	m.mu.Unlock()
	if gw != nil {
		m.segments[n.vlan].CompareAndSwap(gw.seg, nil)
		gw.seg.setFaults(nil)
		gw.close()
	}
}

// SetFaults replaces what is wrong in a network; none is all well. It returns the ids of the containers there, whose
// frames must come to the host now, also those to others in their machine, or need not any more.
func (m *Manager) SetFaults(ref string, faults []Fault) ([]string, error) {
	for _, f := range faults {
		if err := f.validate(); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	n, err := m.find(ref)
	if err != nil {
		m.mu.Unlock()
		return nil, err
	}
	n.faults = slices.Clone(faults)
	var ids []string
	for _, o := range m.info(n).Owners {
		ids = append(ids, o.ID)
	}
	gw := n.gw
	m.mu.Unlock()
	if gw != nil {
		gw.seg.setFaults(faults)
	}
	return ids, nil
}

// setFaults replaces the lines of a segment.
func (s *segment) setFaults(faults []Fault) {
	var l, old *lines
	if len(faults) > 0 {
		l = newLines(s, slices.Clone(faults))
	}
	s.change(func(t *table) { old, t.lines = t.lines, l })
	if old != nil {
		old.close()
	}
}
