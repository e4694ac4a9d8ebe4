package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	protoICMP  = 1
	protoICMP6 = 58

	maxPings    = 256
	pingTimeout = 10 * time.Second
)

// ping4 takes an IPv4 echo request to the outside, and all other ICMP to there, which nobody needs.
func (g *gateway) ping4(f frame) bool {
	b := f.body()
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:4]))
	if head < 20 || total < head+8 || total > len(b) || b[head] != 8 || binary.BigEndian.Uint16(b[6:8])&0x3fff != 0 {
		return true // not an echo request, or a fragment
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	reply := append(frame(nil), f[:headerLen+total]...)
	copy(reply[:6], f[6:12])
	copy(reply[6:12], g.seg.gateway[:])
	g.ping(src, dst, reply, headerLen+head, func(r frame) {
		ip := r.body()
		copy(ip[12:16], b4(dst))
		copy(ip[16:20], b4(src))
		ip[8] = 64 // time to live
		setSum(ip[:head], 10, 0)
		ip[head] = 0 // echo reply
		setSum(ip[head:], 2, 0)
	})
	return true
}

func b4(a netip.Addr) []byte { b := a.As4(); return b[:] }

// tap6 is tap for IPv6.
func (g *gateway) tap6(f frame) bool {
	b := f.body()
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	const (
		solicitation = 135
		request      = 128
	)
	if !g.spec.IPv6 {
		return true
	}
	if b[6] != protoICMP6 {
		return dst.IsMulticast() || dst.IsLinkLocalUnicast()
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:6]))
	if total < 48 || total > len(b) {
		return true
	}
	if b[40] == solicitation {
		return total < 64 || !g.isLocal(netip.AddrFrom16([16]byte(b[48:64])))
	}
	if dst.IsMulticast() || g.isLocal(dst) {
		return dst.IsMulticast()
	}
	if b[40] != request {
		return true
	}
	reply := append(frame(nil), f[:headerLen+total]...)
	copy(reply[:6], f[6:12])
	copy(reply[6:12], g.seg.gateway[:])
	g.ping(src, dst, reply, headerLen+40, func(r frame) {
		ip := r.body()
		copy(ip[8:24], b[24:40])
		d, s := dst.As16(), src.As16()
		copy(ip[8:24], d[:])
		copy(ip[24:40], s[:])
		ip[7] = 64
		ip[40] = 129 // echo reply
		pseudo := sum(ip[8:40], uint32(total-40)+protoICMP6)
		setSum(ip[40:], 2, pseudo)
	})
	return true
}

// ping sends the data of an echo request by the host and, when that has an answer, the reply to the container. What the rules
// or the host do not allow, or what there is no way to, is told to the container at once.
func (g *gateway) ping(src, dst netip.Addr, reply frame, at int, finish func(frame)) {
	m := g.seg.member(src)
	if m == nil {
		return
	}
	if !g.policy.allows(g.flow(m, "icmp", netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0))) {
		g.seg.fromGateway(g.seg.buffers.copyOf(g.unreachable(reply, true)))
		return
	}
	select {
	case g.pings <- struct{}{}:
	default:
		return
	}
	if !g.begin() {
		<-g.pings
		return
	}
	go func() {
		defer g.end()
		defer func() { <-g.pings }()
		ctx, cancel := context.WithTimeout(m.lease.ctx, pingTimeout)
		defer cancel()
		data, err := g.echo(ctx, dst, reply[at+8:])
		if err != nil {
			g.log.Debug("an echo request was not answered", "network", g.name, "container", m.owner.Name, "to", dst, "err", err)
			if ctx.Err() == nil {
				g.seg.fromGateway(g.seg.buffers.copyOf(g.unreachable(reply, errors.Is(err, fs.ErrPermission))))
			}
			return
		}
		copy(reply[at+8:], data)
		finish(reply)
		pkt := g.seg.buffers.copyOf(reply)
		g.seg.fromGateway(pkt)
	}()
}

// unreachable returns what tells a container that its packet came to nothing: because it is not allowed, or because there is no
// way. f is the packet, with the Ethernet addresses of the answer.
func (g *gateway) unreachable(f frame, prohibited bool) frame {
	orig := f.body()
	if f.kind() == typeIPv4 {
		orig = orig[:min(len(orig), int(orig[0]&15)*4+8)]
		out := make(frame, headerLen+20+8+len(orig))
		copy(out, f[:headerLen])
		ip := out.body()
		ip[0], ip[8], ip[9] = 0x45, 64, protoICMP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:16], b4(g.spec.Gateway))
		copy(ip[16:20], orig[12:16])
		setSum(ip[:20], 10, 0)
		msg := ip[20:]
		msg[0], msg[1] = 3, 1 // the host is unreachable
		if prohibited {
			msg[1] = 13
		}
		copy(msg[8:], orig)
		setSum(msg, 2, 0)
		return out
	}
	const most = 1280 - 40 - 8 // of the orig: what every link takes
	orig = orig[:min(len(orig), most)]
	out := make(frame, headerLen+40+8+len(orig))
	copy(out, f[:headerLen])
	ip := out.body()
	ip[0], ip[6], ip[7] = 0x60, protoICMP6, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
	from := address6(g.spec.Subnet6, g.spec.Gateway).As16()
	copy(ip[8:24], from[:])
	copy(ip[24:40], orig[8:24])
	msg := ip[40:]
	msg[0], msg[1] = 1, 0 // no route
	if prohibited {
		msg[1] = 1
	}
	copy(msg[8:], orig)
	setSum(msg, 2, sum(ip[8:40], uint32(len(msg))+protoICMP6))
	return out
}

// sum adds up the words of b, as of RFC 1071.
func sum(b []byte, start uint32) uint32 {
	s := start
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

// setSum sets the checksum of b, which is at an offset in it.
func setSum(b []byte, at int, start uint32) {
	b[at], b[at+1] = 0, 0
	s := sum(b, start)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(b[at:], ^uint16(s))
}

// hostEcho sends an echo request from the host and returns the data of the reply. It takes a host whose kernel lets the
// user open ICMP sockets, or root.
func hostEcho(ctx context.Context, to netip.Addr, data []byte) ([]byte, error) {
	unprivileged, privileged, local := "udp4", "ip4:icmp", "0.0.0.0"
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	proto := protoICMP
	if to.Is6() {
		unprivileged, privileged, local, proto = "udp6", "ip6:ipv6-icmp", "::", protoICMP6
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(unprivileged, local)
	var dst net.Addr = &net.UDPAddr{IP: to.AsSlice()}
	if err != nil {
		if c, err = icmp.ListenPacket(privileged, local); err != nil {
			return nil, fmt.Errorf("open an ICMP socket: %w: be root, or let the user's group do so by the sysctl net.ipv4.ping_group_range", err)
		}
		dst = &net.IPAddr{IP: to.AsSlice()}
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	id := int(time.Now().UnixNano() & 0xffff)
	msg := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: 1, Data: data}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteTo(b, dst); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil, err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != reply || !sameHost(from, to) {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.Seq == 1 && string(e.Data) == string(data) {
			return e.Data, nil
		}
	}
}

func sameHost(a net.Addr, want netip.Addr) bool {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap() == want
	case *net.IPAddr:
		got, ok := netip.AddrFromSlice(a.IP)
		return ok && got.Unmap() == want
	}
	return false
}
