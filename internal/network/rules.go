package network

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// rule is a Rule that can be asked.
type rule struct {
	deny     bool
	prefix   netip.Prefix // valid for a rule of addresses
	name     string       // "" is any
	below    bool         // all below name
	ports    [][2]uint16  // none is any
	protocol string
}

func (r Rule) compile() (rule, error) {
	out := rule{deny: r.Deny, protocol: r.Protocol}
	switch r.Protocol {
	case "", "tcp", "udp", "icmp":
	default:
		return out, invalid("protocol of an egress rule", r.Protocol, "use tcp, udp, icmp or none")
	}
	if err := out.setHost(r.Host); err != nil {
		return out, err
	}
	if r.Ports == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(r.Ports, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b < a || len(out.ports) >= maxRules {
			return out, invalid("ports of an egress rule", r.Ports, `use ports from 1 to 65535, such as "443,8000-8100"`)
		}
		out.ports = append(out.ports, [2]uint16{uint16(a), uint16(b)})
	}
	return out, nil
}

func (r *rule) setHost(host string) error {
	if host == "" {
		return nil
	}
	if p, err := netip.ParsePrefix(host); err == nil {
		r.prefix = p.Masked()
		return nil
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		r.prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		return nil
	}
	r.name = normal(host)
	r.name, r.below = strings.CutPrefix(r.name, "*.")
	if !aliasPattern.MatchString(r.name) {
		return invalid("host of an egress rule", host, `use a name, "*." and a name, an address, or a CIDR`)
	}
	return nil
}

// fits tells whether the rule is about a flow.
func (r *rule) fits(f Flow) bool {
	if r.protocol != "" && r.protocol != f.Protocol {
		return false
	}
	port := f.Destination.Port()
	if len(r.ports) > 0 && !slices.ContainsFunc(r.ports, func(p [2]uint16) bool { return p[0] <= port && port <= p[1] }) {
		return false
	}
	if r.prefix.IsValid() {
		return r.prefix.Contains(f.Destination.Addr())
	}
	return r.name == "" || slices.ContainsFunc(f.Names, func(n string) bool {
		return !r.below && n == r.name || r.below && strings.HasSuffix(n, "."+r.name)
	})
}

// policy decides which flows may leave a network.
type policy struct {
	rules    []rule
	internal bool
	ours     func(netip.Addr) bool // tells that an address is in a network of the manager: nobody outside has it
}

// allows tells whether a flow may leave. What belongs to the host alone takes a rule that names its address: a rule for
// all, or for a name, is not meant for it, as whoever runs the name could point it anywhere.
func (p policy) allows(f Flow) bool {
	a := f.Destination.Addr()
	if p.ours(a) {
		return false
	}
	private := isPrivate(a)
	for i := range p.rules {
		if r := &p.rules[i]; r.fits(f) && (r.deny || !private || r.prefix.IsValid() && r.prefix.Bits() > 0) {
			return !r.deny
		}
	}
	return !private && !p.internal
}

// metadata are addresses by which clouds tell a machine its secrets, and which are not link-local.
func isMetadata(a netip.Addr) bool {
	switch a.String() {
	case "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192":
		return true
	}
	return false
}

// isPrivate tells that an address is the host's own, or of its link, or of no single host.
func isPrivate(a netip.Addr) bool {
	if a = a.Unmap(); isMetadata(a) || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return true
	}
	if a.Is4() {
		return a.As4()[0] == 0 || a.As4()[0] >= 240
	}
	// Ways to write an IPv4 address in an IPv6 one, which a host may resolve to that.
	for _, p := range []string{"64:ff9b::/96", "2002::/16", "::/96"} {
		if netip.MustParsePrefix(p).Contains(a) {
			return true
		}
	}
	return false
}
