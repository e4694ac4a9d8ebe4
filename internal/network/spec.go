package network

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Spec describes a network. What is data in it is part of the network's record.
type Spec struct {
	Name     string
	Subnet   netip.Prefix // IPv4; zero is a free one
	Gateway  netip.Addr   // zero is the subnet's first address
	IPv6     bool         // with a Subnet6, a free one where that is zero
	Subnet6  netip.Prefix
	Internal bool // nothing goes outside but what a rule allows
	Labels   map[string]string
	Egress   []Rule                  // the first that fits decides
	Hosts    map[string][]netip.Addr // names that are answered so
	Services map[uint16]string       // TCP ports of the gateway, and the addresses on the host they lead to

	Dial    DialFunc                                                                    `json:"-"` // nil dials the host's way
	Resolve func(ctx context.Context, q Query) (addrs []netip.Addr, ok bool, err error) `json:"-"` // ok is false for what it does not answer
}

// DialFunc makes a connection for a container.
type DialFunc func(ctx context.Context, f Flow) (net.Conn, error)

// Flow is a connection that a container makes to the outside.
type Flow struct {
	Network       string // name
	Container     string // id
	ContainerName string
	Protocol      string // tcp, udp or icmp
	Source        netip.AddrPort
	Destination   netip.AddrPort // without a port for icmp
	Names         []string       // that the network's DNS has answered with the destination's address lately
}

// Query is a question to the DNS of a network.
type Query struct {
	Network       string // name
	Container     string // id
	ContainerName string
	Name          string // without the dot at its end, in small letters
}

// Rule allows or denies connections to the outside. A field that is empty fits all.
type Rule struct {
	Deny     bool   `json:"deny,omitempty"`
	Host     string `json:"host,omitempty"`     // a name, "*." and a name for all below it, an address, or a CIDR
	Ports    string `json:"ports,omitempty"`    // "443", "8000-8100", joined by commas
	Protocol string `json:"protocol,omitempty"` // tcp, udp or icmp
}

// The bounds of a network.
const (
	maxRules   = 1024
	maxEntries = 1024 // of a map
	minBits4   = 8
	maxBits4   = 29
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// aliasPattern is that of names which a container is found by.
var aliasPattern = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,126}[a-zA-Z0-9_])?$`)

func invalid(field string, value any, fix string) error {
	return fmt.Errorf("%w %s %.100q: %s", errs.ErrInvalid, field, fmt.Sprint(value), fix)
}

// Validate checks what can be checked without other networks.
func (s Spec) Validate() error {
	if !namePattern.MatchString(s.Name) || reserved(s.Name) {
		return invalid("network name", s.Name, "use 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit; not none, machine, host or default")
	}
	if err := s.checkSubnets(); err != nil {
		return err
	}
	if len(s.Egress) > maxRules {
		return fmt.Errorf("%w: %d egress rules are more than %d", errs.ErrInvalid, len(s.Egress), maxRules)
	}
	for _, r := range s.Egress {
		if _, err := r.compile(); err != nil {
			return err
		}
	}
	if len(s.Labels) > maxEntries || len(s.Hosts) > maxEntries || len(s.Services) > maxEntries {
		return fmt.Errorf("%w: more than %d labels, hosts or services", errs.ErrInvalid, maxEntries)
	}
	for name, addrs := range s.Hosts {
		if !aliasPattern.MatchString(name) || len(addrs) == 0 || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() }) {
			return invalid("host", name, "use a name of letters, digits, '_', '.' and '-', and at least one address")
		}
	}
	for port, to := range s.Services {
		if err := checkService(port, to); err != nil {
			return err
		}
	}
	return nil
}

func checkService(port uint16, to string) error {
	_, p, err := net.SplitHostPort(to)
	if err == nil {
		_, err = strconv.ParseUint(p, 10, 16)
	}
	if err != nil || port == 0 || port == dnsPort {
		return invalid("service", fmt.Sprintf("%d=%s", port, to), "use a port other than 53 and host:port on the host")
	}
	return nil
}

func (s Spec) checkSubnets() error {
	if p := s.Subnet; p.IsValid() || p != (netip.Prefix{}) {
		if !p.IsValid() || !p.Addr().Is4() || p.Bits() < minBits4 || p.Bits() > maxBits4 || p != p.Masked() || unusable(p) {
			return invalid("subnet", p, fmt.Sprintf("use an IPv4 prefix of %d to %d bits without host bits, such as 10.5.0.0/24", minBits4, maxBits4))
		}
	}
	if g := s.Gateway; g.IsValid() {
		if !s.Subnet.IsValid() || !usable(s.Subnet, g) {
			return invalid("gateway", g, "use an address of the subnet, which must be given with it")
		}
	}
	if p := s.Subnet6; p.IsValid() || p != (netip.Prefix{}) {
		if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 64 || p != p.Masked() || unusable(p) {
			return invalid("IPv6 subnet", p, "use an IPv6 prefix of at most 64 bits without host bits, such as fd12:3456::/64")
		}
	}
	return nil
}

// unusable tells that the addresses of a prefix mean something else.
func unusable(p netip.Prefix) bool {
	for _, bad := range []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "0.0.0.0/8", "fe80::/10", "ff00::/8", "::/8"} {
		if netip.MustParsePrefix(bad).Overlaps(p) {
			return true
		}
	}
	return false
}

// usable tells that an address of an IPv4 subnet may be a member's.
func usable(p netip.Prefix, a netip.Addr) bool {
	return a.Is4() && p.Contains(a) && a != p.Addr() && a != lastOf(p)
}

// lastOf returns the broadcast address of an IPv4 subnet.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// The network modes, and what else is not a network's name.
const (
	ModeNone    = "none"    // a loopback interface only
	ModeMachine = "machine" // the machine's own interfaces
	modeHost    = "host"
	DefaultName = "default" // of the network that containers have which name none
	modePrefix  = "container:"
)

func reserved(name string) bool {
	return name == ModeNone || name == ModeMachine || name == modeHost || name == DefaultName
}

func (s Spec) clone() Spec {
	s.Labels, s.Services = maps.Clone(s.Labels), maps.Clone(s.Services)
	s.Egress = slices.Clone(s.Egress)
	hosts := make(map[string][]netip.Addr, len(s.Hosts))
	for name, addrs := range s.Hosts {
		hosts[name] = slices.Clone(addrs)
	}
	s.Hosts = hosts
	return s
}

// Info is what there is of a network at one moment.
type Info struct {
	ID      string
	VLAN    uint16
	Created time.Time
	Members []Endpoint
	Owners  []Owner // of Members, in the same order
	Spec    Spec    // with the subnets that it has
}

// Filter says which networks List returns: those that fit all fields that are set.
type Filter struct {
	Labels []string // all of these: key, or key=value
	Name   string   // part of the name
}

func (f Filter) fits(s Spec) bool {
	for _, l := range f.Labels {
		k, want, exact := strings.Cut(l, "=")
		if v, ok := s.Labels[k]; !ok || exact && v != want {
			return false
		}
	}
	return strings.Contains(s.Name, f.Name)
}

// normal is how names are compared.
func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
