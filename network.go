package arcbox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// DefaultNetwork is the name of the network of containers that name none. It is always there.
const DefaultNetwork = network.DefaultName

// The values of ContainerSpec.Network, beside "container:" and the id or name of another container.
const (
	NetworkNone    = network.ModeNone    // a loopback interface only
	NetworkMachine = network.ModeMachine // the interfaces of the machine itself, which have no addresses
)

// HostName is the name by which containers reach NetworkSpec.Services.
const HostName = "host.arcbox.internal"

// NetworkSpec describes a network to make. Only Name is required. Containers of one network reach each other by address and
// by name, whatever machine of the Runtime they run in, and those of other networks not at all. What they open to the
// outside is opened by this process, as any program on the host may.
type NetworkSpec struct {
	Name    string       // unique; 1 to 128 letters, digits, '_', '.', '-'
	Subnet  netip.Prefix // IPv4, of 8 to 29 bits; zero is a free one of 10.208.0.0/12
	Gateway netip.Addr   // of the host, in Subnet; zero is its first address
	IPv6    bool         // containers have an IPv6 address too
	Subnet6 netip.Prefix // IPv6, of at most 64 bits; zero is a unique local one, where IPv6 is set

	Internal bool              // nothing goes outside but what Egress allows, and no name of the outside is answered
	Labels   map[string]string // for the caller's own use

	// Egress decides what containers may open to the outside: the first rule that fits. What none fits is allowed, but for
	// Internal. Loopback and link-local addresses of the host, those by which clouds tell secrets, and multicast take a rule
	// with their address: one for all, or for a name, does not allow them.
	Egress []EgressRule
	// Hosts are names that the network's DNS answers with these addresses, before it asks the host's resolver.
	Hosts map[string][]netip.Addr
	// Services are TCP ports of HostName, each with the host:port on this host to which it leads. In a container of several
	// networks the name means the first of them that has services.
	Services map[uint16]string

	// Dial makes every connection of a container to the outside that Egress allows, TCP and UDP, in place of the host: it
	// may refuse by an error, go elsewhere, or answer itself. A connection needs a CloseWrite for half-close to work, and of
	// UDP each Read and Write is a packet. It is called from many goroutines, and ctx ends with the container. A program
	// that opens the data directory later makes the network anew by CreateNetwork with the same name, which keeps its
	// address; until then nothing leaves it. nil dials the host's way.
	Dial func(ctx context.Context, f NetworkFlow) (net.Conn, error)
	// Resolve answers names before the host's resolver is asked. answered is false for what it leaves to that. It is called
	// from many goroutines. nil answers none.
	Resolve func(ctx context.Context, q NetworkQuery) (addrs []netip.Addr, answered bool, err error)
}

// EgressRule allows or denies what containers open to the outside. A field that is empty fits all.
//
// Of ICMP there are echo requests, which the host sends where it lets this process do so: root, or a group of the sysctl
// net.ipv4.ping_group_range. What is not allowed, by a rule or the host, is told to the container as such.
type EgressRule struct {
	Deny     bool
	Host     string // a name, "*." and a name for all names below it, an address, or a CIDR. A name fits the addresses that the network's DNS has answered it with
	Ports    string // as "443", "8000-8100", or several with commas
	Protocol string // tcp, udp or icmp
}

// NetworkFlow is what a container opens to the outside. Containers of one machine that have the capability NET_RAW can
// send under the addresses of each other; those of other machines cannot.
type NetworkFlow struct {
	Network       string // name
	Container     string // id
	ContainerName string
	Protocol      string // tcp, udp or icmp
	Source        netip.AddrPort
	Destination   netip.AddrPort // without a port for icmp
	Names         []string       // that the network's DNS has answered with the destination's address lately
}

// NetworkQuery is a question to the DNS of a network.
type NetworkQuery struct {
	Network       string // name
	Container     string // id
	ContainerName string
	Name          string // without the dot at its end, in small letters
}

// NetworkInfo is what there is of a network at one moment.
type NetworkInfo struct {
	ID      string // 64 hexadecimal digits
	Created time.Time
	Members []NetworkMember // the containers in it, whether they run or not
	Spec    NetworkSpec     // what it was made from, with the subnets and the gateway that it has
}

// NetworkMember is a container in a network.
type NetworkMember struct {
	ContainerID string
	Name        string
	Endpoint    Endpoint
}

// Endpoint is the place of a container in a network. It keeps its addresses until it is removed.
type Endpoint struct {
	Network   string // name
	Interface string // in the container: eth0, eth1 and so on
	MAC       string
	IPv4      netip.Addr
	IPv6      netip.Addr // zero in a network without IPv6
	Aliases   []string
}

// NetworkAttachment says how a container is in a network.
type NetworkAttachment struct {
	Network string     // id or name
	IPv4    netip.Addr // a free address of the subnet; zero is any
	Aliases []string   // more names by which the others of the network find it, beside its name and the first 12 digits of its id
}

// PortMapping publishes a port of a container on the host while the container runs. Connections come from the network's
// gateway, as the container sees them.
type PortMapping struct {
	Protocol      string     // tcp or udp; "" is tcp
	HostIP        netip.Addr // zero is 127.0.0.1: 0.0.0.0 and :: are for all who reach the host
	HostPort      uint16     // 0 is a free one, anew at each start, which ContainerInfo.Ports tells
	ContainerPort uint16     // 1 to 65535
	Count         int        // so many ports in a row, from both ports on; 0 is 1
}

// SocketMapping publishes a Unix socket of a container as one on the host while the container runs, for the program's user
// only: the socket has mode 0600, and its directory 0700 where it is made. A socket at HostPath on which nobody listens is
// replaced; anything else there is ErrConflict when the container starts. In a fork of the container's machine it is left
// out where the path is taken.
type SocketMapping struct {
	HostPath      string // absolute, at most 103 bytes, its directory at most 89
	ContainerPath string // as of Dial with "unix"; it need not be there before somebody connects
}

// NetworkFault is what is made wrong between two members of a network, both ways. Where several fit a pair the last one
// holds.
type NetworkFault struct {
	A, B      string        // id or name of a container, an alias of it, or FaultOutside; "" is all
	Latency   time.Duration // added each way
	Jitter    time.Duration // at most added to Latency, at random; the order of packets stays
	Loss      float64       // share of packets that are lost, 0 to 1
	Bandwidth int64         // bytes in a second, each way; 0 is no limit
	Partition bool          // nothing comes through
	Reset     bool          // TCP connections are reset, those that are open and new ones
}

// FaultOutside stands for the host, and all that is reached through it, in a NetworkFault.
const FaultOutside = network.Outside

func (s NetworkSpec) compile() network.Spec {
	out := network.Spec{
		Name: s.Name, Subnet: s.Subnet, Gateway: s.Gateway, IPv6: s.IPv6, Subnet6: s.Subnet6, Internal: s.Internal,
		Labels: s.Labels, Hosts: s.Hosts, Services: s.Services,
	}
	for _, r := range s.Egress {
		out.Egress = append(out.Egress, network.Rule(r))
	}
	if dial := s.Dial; dial != nil {
		out.Dial = func(ctx context.Context, f network.Flow) (net.Conn, error) { return dial(ctx, NetworkFlow(f)) }
	}
	if resolve := s.Resolve; resolve != nil {
		out.Resolve = func(ctx context.Context, q network.Query) ([]netip.Addr, bool, error) {
			return resolve(ctx, NetworkQuery(q))
		}
	}
	return out
}

func networkInfo(i network.Info) NetworkInfo {
	s := i.Spec
	out := NetworkInfo{ID: i.ID, Created: i.Created, Spec: NetworkSpec{
		Name: s.Name, Subnet: s.Subnet, Gateway: s.Gateway, IPv6: s.IPv6, Subnet6: s.Subnet6, Internal: s.Internal,
		Labels: s.Labels, Hosts: s.Hosts, Services: s.Services,
	}}
	for _, r := range s.Egress {
		out.Spec.Egress = append(out.Spec.Egress, EgressRule(r))
	}
	for k, e := range i.Members {
		out.Members = append(out.Members, NetworkMember{i.Owners[k].ID, i.Owners[k].Name, endpoint(e)})
	}
	return out
}

func endpoint(e network.Endpoint) Endpoint {
	return Endpoint{Network: e.Network, Interface: e.Interface, MAC: e.MAC, IPv4: e.IPv4, IPv6: e.IPv6, Aliases: e.Aliases}
}

func portMapping(p network.Published) PortMapping {
	return PortMapping{Protocol: p.Protocol, HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort}
}

// expand makes a request for each port of a mapping.
func (p PortMapping) expand() ([]network.Publish, error) {
	n := max(p.Count, 1)
	if p.Count < 0 || int(p.ContainerPort)+n > 1<<16 || int(p.HostPort)+n > 1<<16 {
		return nil, fmt.Errorf("%w port %d:%d: %d in a row do not fit below 65536", ErrInvalid, p.HostPort, p.ContainerPort, p.Count)
	}
	out := make([]network.Publish, n)
	for i := range out {
		out[i] = network.Publish{Protocol: p.Protocol, HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort + uint16(i)}
		if p.HostPort != 0 {
			out[i].HostPort += uint16(i)
		}
	}
	return out, nil
}

// CreateNetwork makes a network. No machine is started for it. A name that is taken is ErrExists, a subnet that overlaps
// another network's ErrConflict, what cannot work ErrInvalid.
func (r *Runtime) CreateNetwork(ctx context.Context, spec NetworkSpec) (NetworkInfo, error) {
	return call(ctx, r, "CreateNetwork", spec.Name, func(context.Context) (NetworkInfo, error) {
		i, err := r.networks.Create(spec.compile())
		if err != nil {
			return NetworkInfo{}, err
		}
		r.events.Publish(event.Event{Kind: event.NetworkCreated, ID: i.ID, Name: i.Spec.Name})
		return networkInfo(i), nil
	})
}

// ListNetworksOptions says which networks ListNetworks returns: those that fit all fields that are set. The zero value
// lists all.
type ListNetworksOptions struct {
	Labels []string // all of these: key, or key=value
	Name   string   // part of the name
}

// ListNetworks returns the networks of this Runtime, the oldest first.
func (r *Runtime) ListNetworks(ctx context.Context, opts ListNetworksOptions) ([]NetworkInfo, error) {
	return call(ctx, r, "ListNetworks", "", func(context.Context) ([]NetworkInfo, error) {
		all, err := r.networks.List(network.Filter{Labels: opts.Labels, Name: opts.Name})
		out := make([]NetworkInfo, len(all))
		for k, i := range all {
			out[k] = networkInfo(i)
		}
		return out, err
	})
}

// InspectNetwork returns one network, by its id, its name, or a unique beginning of its id.
func (r *Runtime) InspectNetwork(ctx context.Context, ref string) (NetworkInfo, error) {
	return call(ctx, r, "InspectNetwork", ref, func(context.Context) (NetworkInfo, error) {
		i, err := r.networks.Inspect(ref)
		return networkInfo(i), err
	})
}

// RemoveNetwork removes a network, and closes the listeners on it. One that has containers, running or not, is ErrInUse;
// the default one is ErrConflict.
func (r *Runtime) RemoveNetwork(ctx context.Context, ref string) error {
	return callNone(ctx, r, "RemoveNetwork", ref, func(context.Context) error {
		i, err := r.networks.Remove(ref)
		if err == nil {
			r.networkRemoved(i)
		}
		return err
	})
}

func (r *Runtime) networkRemoved(i network.Info) {
	r.events.Publish(event.Event{Kind: event.NetworkRemoved, ID: i.ID, Name: i.Spec.Name})
}

// PruneNetworks removes the networks in which there are no containers and no listeners, but for the default one, and
// returns them.
func (r *Runtime) PruneNetworks(ctx context.Context) ([]NetworkInfo, error) {
	return call(ctx, r, "PruneNetworks", "", func(context.Context) ([]NetworkInfo, error) {
		gone, err := r.networks.Prune()
		out := make([]NetworkInfo, len(gone))
		for k, i := range gone {
			r.networkRemoved(i)
			out[k] = networkInfo(i)
		}
		return out, err
	})
}

// ConnectNetwork adds a container to a network; where it runs it has one interface more at once. A container that is there
// already is ErrExists, one whose network is not its own ErrConflict.
func (r *Runtime) ConnectNetwork(ctx context.Context, ref string, a NetworkAttachment) error {
	return callNone(ctx, r, "ConnectNetwork", ref, func(ctx context.Context) error {
		return r.containers.ConnectNetwork(ctx, ref, network.Attachment(a))
	})
}

// DisconnectNetwork takes a container out of a network: it loses the interface at once, and what it had open there ends.
// One that is not there is ErrConflict.
func (r *Runtime) DisconnectNetwork(ctx context.Context, ref, from string) error {
	return callNone(ctx, r, "DisconnectNetwork", ref, func(ctx context.Context) error {
		return r.containers.DisconnectNetwork(ctx, ref, from)
	})
}

// SetNetworkFaults makes things go wrong in a network, in place of what was made so before; none is all well. It is
// forgotten with the Runtime. A fault that cannot be is ErrInvalid, and changes nothing.
func (r *Runtime) SetNetworkFaults(ctx context.Context, ref string, faults []NetworkFault) error {
	return callNone(ctx, r, "SetNetworkFaults", ref, func(ctx context.Context) error {
		list := make([]network.Fault, len(faults))
		for i, f := range faults {
			list[i] = network.Fault(f)
		}
		ids, err := r.networks.SetFaults(ref, list)
		if err != nil {
			return err
		}
		return r.containers.Reflect(ctx, ids)
	})
}

// Listen makes a program's own service known in a network: containers reach it by a name, which has an address of its own
// there, and a TCP port. A name may have several ports. The listener's connections have a CloseWrite, and their remote
// address is the container's. A name that a container has, or a port of it that is listened on, is ErrExists. Close the
// listener; the Runtime's Close and RemoveNetwork do so too.
func (r *Runtime) Listen(ctx context.Context, ref, name string, port uint16) (net.Listener, error) {
	return call(ctx, r, "Listen", name, func(context.Context) (net.Listener, error) { return r.networks.Listen(ref, name, port) })
}
