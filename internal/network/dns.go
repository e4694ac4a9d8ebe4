package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	dnsPort     = 53
	dnsTTL      = 5  // seconds: names of containers move
	hostTTL     = 30 // seconds
	maxQueries  = 512
	dnsTimeout  = 10 * time.Second
	maxLearned  = 4096
	hostName    = "host.arcbox.internal"
	gatewayName = "gateway.arcbox.internal"
)

// Resolver is the host's resolver. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupCNAME(ctx context.Context, host string) (string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

var _ Resolver = (*net.Resolver)(nil)

// dnsServer answers the questions of one network's containers.
type dnsServer struct {
	g       *gateway
	up      Resolver
	servers []*dns.Server
	wg      sync.WaitGroup
	queries chan struct{} // has a token for each question that is being answered

	mu       sync.Mutex
	services map[string][]netip.Addr // of Listen, by normal name
	learned  map[netip.Addr][]string // names that were asked for, by what was answered
	order    []netip.Addr            // of learned, the oldest first
}

// serveDNS starts the server on all addresses of the gateway.
func (g *gateway) serveDNS(up Resolver) (*dnsServer, error) {
	d := &dnsServer{
		g: g, up: up, queries: make(chan struct{}, maxQueries),
		services: make(map[string][]netip.Addr), learned: make(map[netip.Addr][]string),
	}
	for _, a := range gatewayAddrs(g.spec) {
		at := fullAddress(netip.AddrPortFrom(a, dnsPort))
		pc, err := gonet.DialUDP(g.stack, &at, nil, protocolOf(a))
		if err != nil {
			d.close()
			return nil, fmt.Errorf("serve the names of network %s: %w", g.name, err)
		}
		l, err := gonet.ListenTCP(g.stack, at, protocolOf(a))
		if err != nil {
			pc.Close()
			d.close()
			return nil, fmt.Errorf("serve the names of network %s: %w", g.name, err)
		}
		d.serve(&dns.Server{PacketConn: pc, Handler: d})
		d.serve(&dns.Server{Listener: l, Handler: d, MaxTCPQueries: 128})
	}
	return d, nil
}

// serve runs a server and returns when it does, so that close can end it.
func (d *dnsServer) serve(s *dns.Server) {
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	d.servers = append(d.servers, s)
	d.wg.Go(func() {
		if err := s.ActivateAndServe(); err != nil {
			d.g.log.Debug("serve names", "network", d.g.name, "err", err)
		}
	})
	<-started
}

func (d *dnsServer) close() {
	for _, s := range d.servers {
		ctx, cancel := context.WithTimeout(context.Background(), dnsTimeout)
		_ = s.ShutdownContext(ctx) // questions end with the gateway's context
		cancel()
	}
	d.wg.Wait()
}

// ServeDNS answers a question.
func (d *dnsServer) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	var msg *dns.Msg
	select {
	case d.queries <- struct{}{}:
		defer func() { <-d.queries }()
		msg = d.answer(w.RemoteAddr(), req)
	default:
		msg = new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if o := req.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
			msg.SetEdns0(o.UDPSize(), false)
		}
	}
	msg.Truncate(size)
	if err := w.WriteMsg(msg); err != nil {
		d.g.log.Debug("answer a question for a name", "network", d.g.name, "err", err)
	}
}

func (d *dnsServer) answer(from net.Addr, req *dns.Msg) *dns.Msg {
	msg := new(dns.Msg).SetReply(req)
	msg.RecursionAvailable = true
	if req.Opcode != dns.OpcodeQuery || len(req.Question) != 1 || req.Question[0].Qclass != dns.ClassINET {
		return new(dns.Msg).SetRcode(req, dns.RcodeNotImplemented)
	}
	var m *member
	if a, err := netip.ParseAddrPort(from.String()); err == nil {
		m = d.g.seg.member(a.Addr().Unmap())
	}
	if m == nil { // of a container that has ended
		return new(dns.Msg).SetRcode(req, dns.RcodeRefused)
	}
	ctx, cancel := context.WithTimeout(m.lease.ctx, dnsTimeout)
	defer cancel()
	q := req.Question[0]
	name := normal(q.Name)
	if q.Qtype == dns.TypePTR {
		if known := d.reverse(name); known != "" {
			msg.Answer = []dns.RR{&dns.PTR{Hdr: rrHeader(q, dnsTTL), Ptr: dns.Fqdn(known)}}
			return msg
		}
	}
	addrs, known, err := d.own(ctx, m, name)
	switch {
	case known && err == nil:
		d.addresses(msg, q, name, addrs, dnsTTL)
	case err == nil && d.g.spec.Internal:
		msg.Rcode = dns.RcodeNameError
	case err == nil:
		err = d.ask(ctx, msg, q, name)
	}
	if err != nil {
		msg.Rcode = dns.RcodeServerFailure
		var de *net.DNSError
		if errors.As(err, &de) && de.IsNotFound {
			msg.Rcode = dns.RcodeNameError
		}
	}
	return msg
}

func rrHeader(q dns.Question, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
}

// own answers what is not the host's to answer. known tells that there is such a name.
func (d *dnsServer) own(ctx context.Context, m *member, name string) (addrs []netip.Addr, known bool, err error) {
	for _, g := range m.lease.gateways(d.g) {
		if addrs := g.dns.inNetwork(name); len(addrs) > 0 {
			return addrs, true, nil
		}
	}
	switch name {
	case gatewayName:
		return gatewayAddrs(d.g.spec), true, nil
	case hostName: // of several networks, one by which there is something of the host
		for _, g := range m.lease.gateways(d.g) {
			if len(g.spec.Services) > 0 {
				return gatewayAddrs(g.spec), true, nil
			}
		}
		return gatewayAddrs(d.g.spec), true, nil
	}
	for n, addrs := range d.g.spec.Hosts {
		if normal(n) == name {
			return addrs, true, nil
		}
	}
	if d.g.spec.Resolve != nil {
		q := Query{Network: d.g.name, Container: m.owner.ID, ContainerName: m.owner.Name, Name: name}
		if addrs, known, err = d.g.spec.Resolve(ctx, q); known || err != nil {
			return addrs, known, err
		}
	}
	return nil, false, nil
}

// inNetwork returns the addresses of a name of the network itself.
func (d *dnsServer) inNetwork(name string) (addrs []netip.Addr) {
	t := d.g.seg.table.Load()
	name = strings.TrimSuffix(name, "."+normal(d.g.name))
	for _, m := range t.names[name] {
		addrs = append(addrs, m.addrs...)
	}
	if len(addrs) > 0 {
		return addrs
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.services[name]
}

// addresses puts the addresses into an answer, those of the kind that is asked for.
func (d *dnsServer) addresses(msg *dns.Msg, q dns.Question, name string, addrs []netip.Addr, ttl uint32) {
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			msg.Answer = append(msg.Answer, &dns.A{Hdr: rrHeader(q, ttl), A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			msg.Answer = append(msg.Answer, &dns.AAAA{Hdr: rrHeader(q, ttl), AAAA: a.AsSlice()})
		default:
			continue
		}
		d.learn(a, name)
	}
	rand.Shuffle(len(msg.Answer), func(i, j int) { msg.Answer[i], msg.Answer[j] = msg.Answer[j], msg.Answer[i] })
}

// reverse returns the name of a member by the name of its address in in-addr.arpa or ip6.arpa.
func (d *dnsServer) reverse(name string) string {
	for a, m := range d.g.seg.table.Load().addrs {
		if r, err := dns.ReverseAddr(a.String()); err == nil && normal(r) == name {
			return m.names[0]
		}
	}
	return ""
}

// learn remembers by which name an address was asked for.
func (d *dnsServer) learn(a netip.Addr, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names, known := d.learned[a]
	for _, n := range names {
		if n == name {
			return
		}
	}
	if !known {
		if len(d.order) == maxLearned {
			delete(d.learned, d.order[0])
			d.order = d.order[1:]
		}
		d.order = append(d.order, a)
	}
	const perAddress = 16
	if len(names) == perAddress {
		names = names[1:]
	}
	d.learned[a] = append(names[:len(names):len(names)], name)
}

// namesOf returns the names by which an address was asked for.
func (d *dnsServer) namesOf(a netip.Addr) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.learned[a]
}

// ask has a question answered by the host's resolver.
func (d *dnsServer) ask(ctx context.Context, msg *dns.Msg, q dns.Question, name string) error {
	add := func(rr dns.RR) { msg.Answer = append(msg.Answer, rr) }
	h := rrHeader(q, hostTTL)
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		network := "ip4"
		if q.Qtype == dns.TypeAAAA {
			if network = "ip6"; !d.g.spec.IPv6 {
				return nil // the container could not reach it
			}
		}
		addrs, err := d.up.LookupNetIP(ctx, network, name+".")
		if err != nil && !d.exists(ctx, network, name, err) {
			return err
		}
		d.addresses(msg, q, name, addrs, hostTTL)
	case dns.TypeCNAME:
		c, err := d.up.LookupCNAME(ctx, name+".")
		if err != nil {
			return err
		}
		if normal(c) != name {
			add(&dns.CNAME{Hdr: h, Target: dns.Fqdn(c)})
		}
	case dns.TypePTR:
		return d.askPTR(ctx, add, h, name)
	case dns.TypeTXT:
		all, err := d.up.LookupTXT(ctx, name+".")
		for _, t := range all {
			add(&dns.TXT{Hdr: h, Txt: chunks(t)})
		}
		return err
	case dns.TypeMX:
		all, err := d.up.LookupMX(ctx, name+".")
		for _, m := range all {
			add(&dns.MX{Hdr: h, Preference: m.Pref, Mx: dns.Fqdn(m.Host)})
		}
		return err
	case dns.TypeNS:
		all, err := d.up.LookupNS(ctx, name+".")
		for _, n := range all {
			add(&dns.NS{Hdr: h, Ns: dns.Fqdn(n.Host)})
		}
		return err
	case dns.TypeSRV:
		_, all, err := d.up.LookupSRV(ctx, "", "", name+".")
		for _, s := range all {
			add(&dns.SRV{Hdr: h, Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: dns.Fqdn(s.Target)})
		}
		return err
	default:
		msg.Rcode = dns.RcodeNotImplemented
	}
	return nil
}

// exists tells that a name has addresses of the other kind: then it is known, and has none of this one.
func (d *dnsServer) exists(ctx context.Context, network, name string, err error) bool {
	var de *net.DNSError
	if !errors.As(err, &de) || !de.IsNotFound {
		return false
	}
	other := "ip6"
	if network == "ip6" {
		other = "ip4"
	}
	_, err = d.up.LookupNetIP(ctx, other, name+".")
	return err == nil
}

func (d *dnsServer) askPTR(ctx context.Context, add func(dns.RR), h dns.RR_Header, name string) error {
	a, ok := fromReverse(name)
	if !ok {
		return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	all, err := d.up.LookupAddr(ctx, a.String())
	for _, n := range all {
		add(&dns.PTR{Hdr: h, Ptr: dns.Fqdn(n)})
	}
	return err
}

// fromReverse returns the address of a name in in-addr.arpa or ip6.arpa.
func fromReverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		p := strings.Split(s, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	p := strings.Split(s, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		if len(p[i]) != 1 || p[i] == ":" || p[i] == "." || p[i] == "%" {
			return netip.Addr{}, false
		}
		b.WriteString(p[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}

// chunks cuts a text as a TXT record has it.
func chunks(s string) []string {
	const most = 255
	var out []string
	for len(s) > most {
		out, s = append(out, s[:most]), s[most:]
	}
	return append(out, s)
}
