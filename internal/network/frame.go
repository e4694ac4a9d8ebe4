package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
)

// The MTU of the interfaces of containers, and what follows from it.
const (
	MTU = 65000 // bytes: the larger a packet, the less it costs

	headerLen = 14                       // of Ethernet, without a tag
	tagLen    = 4                        // of IEEE 802.1Q
	maxFrame  = MTU + headerLen + tagLen // bytes
	prefixLen = 4                        // length of a frame before it on a stream, big endian
	roomLen   = prefixLen + tagLen       // before a frame in a buffer
	bufferLen = roomLen + maxFrame
	smallLen  = 2048 // of the buffers of short frames
)

const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100

	vlanMask = 0x0fff
)

// mac is an Ethernet address.
type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

// group tells whether the address is of many: multicast or broadcast.
func (m mac) group() bool { return m[0]&1 != 0 }

// macOf returns the Ethernet address of the member of a network with an IPv4 address. It changes with that only, so a
// neighbour table that still has the pair is right.
func macOf(a netip.Addr) mac {
	b := a.As4()
	return mac{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// frame is an Ethernet frame without a tag.
type frame []byte

func (f frame) dst() (m mac)  { copy(m[:], f[:6]); return m }
func (f frame) src() (m mac)  { copy(m[:], f[6:12]); return m }
func (f frame) kind() uint16  { return binary.BigEndian.Uint16(f[12:14]) }
func (f frame) body() []byte  { return f[headerLen:] }
func (f frame) setKind(k int) { binary.BigEndian.PutUint16(f[12:14], uint16(k)) }

// untag takes the tag out of a frame that came from a machine, in place, and returns what is left and the VLAN. ok is
// false for one without a tag, or too short to be looked at: every frame that it lets pass has a whole header.
func untag(b []byte) (f frame, vlan uint16, ok bool) {
	if len(b) < headerLen+tagLen || len(b) > maxFrame || binary.BigEndian.Uint16(b[12:14]) != typeVLAN {
		return nil, 0, false
	}
	vlan = binary.BigEndian.Uint16(b[14:16]) & vlanMask
	copy(b[tagLen:], b[:12])
	return b[tagLen:], vlan, true
}

// from tells by which IP address a frame was sent. ok is false for what no container has a reason to send: another
// protocol than ARP, IPv4 and IPv6, or a packet that is cut short.
func (f frame) from() (a netip.Addr, ok bool) {
	b := f.body()
	switch f.kind() {
	case typeIPv4:
		if len(b) < 20 || b[0]>>4 != 4 {
			return a, false
		}
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case typeIPv6:
		if len(b) < 40 || b[0]>>4 != 6 {
			return a, false
		}
		return netip.AddrFrom16([16]byte(b[8:24])), true
	case typeARP:
		if len(b) < 28 || binary.BigEndian.Uint16(b[2:4]) != typeIPv4 || b[4] != 6 || b[5] != 4 {
			return a, false
		}
		return netip.AddrFrom4([4]byte(b[14:18])), true
	}
	return a, false
}

// packet is a frame on its way to a machine, in a buffer with room for what goes before it.
type packet struct {
	buf []byte // room, then the frame
}

func (p packet) frame() frame { return p.buf[roomLen:] }

// tag puts a VLAN tag into the frame and returns the bytes for a stream: the length, then the frame.
func (p packet) tag(vlan uint16) []byte {
	copy(p.buf[prefixLen:], p.buf[roomLen:roomLen+12])
	binary.BigEndian.PutUint16(p.buf[prefixLen+12:], typeVLAN)
	binary.BigEndian.PutUint16(p.buf[prefixLen+14:], vlan)
	binary.BigEndian.PutUint32(p.buf, uint32(len(p.buf)-prefixLen))
	return p.buf
}

// buffers are used again.
type buffers struct{ small, large sync.Pool }

// get returns a packet with a frame of n bytes, of any content. n is at most maxFrame.
func (b *buffers) get(n int) packet {
	pool, size := &b.large, bufferLen
	if roomLen+n <= smallLen {
		pool, size = &b.small, smallLen
	}
	if p, ok := pool.Get().(*[]byte); ok {
		return packet{(*p)[:roomLen+n]}
	}
	return packet{make([]byte, size)[:roomLen+n]}
}

// put gives a packet back. Nobody may use it any more.
func (b *buffers) put(p packet) {
	full := p.buf[:cap(p.buf)]
	if len(full) == smallLen {
		b.small.Put(&full)
	} else if len(full) == bufferLen {
		b.large.Put(&full)
	}
}

// copyOf returns a packet with a copy of a frame.
func (b *buffers) copyOf(f frame) packet {
	p := b.get(len(f))
	copy(p.frame(), f)
	return p
}
