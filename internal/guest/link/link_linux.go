// Package link makes the network interfaces of containers, as far as these need it: over rtnetlink, see rtnetlink(7).
package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// timeout is how long the kernel may take to answer.
const timeout = 30 * time.Second

// Conn speaks to the kernel about the interfaces of one network namespace, which lives as long as the Conn. Its methods
// may be called from many goroutines.
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// Dial opens a Conn for the network namespace of the caller.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(timeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Conn{fd: fd, buf: make([]byte, 16<<10)}, nil
}

// loopback is the number of the loopback interface, which is the first of each network namespace.
const loopback = 1

// Make makes a network namespace whose loopback interface is up, and opens a Conn for it. ns is a file descriptor of it, for
// the caller to close. A thread goes there for as long as that takes, and calls prepare there.
func Make(prepare func()) (c *Conn, ns int, err error) {
	own, err := openOwn()
	if err != nil {
		return nil, -1, err
	}
	defer unix.Close(own)
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("make a network namespace: %w", err)
			return
		}
		c, ns, err = open()
		if err == nil {
			prepare()
		}
		if unix.Setns(own, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with its goroutine
		}
	}()
	<-done
	return c, ns, err
}

// openOwn opens the network namespace of the thread.
func openOwn() (int, error) {
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the own network namespace: %w", err)
	}
	return ns, nil
}

// open opens the network namespace of the thread, which is new, and a Conn for it, and brings up its loopback interface. The
// socket belongs to the namespace of the thread that makes it.
func open() (c *Conn, ns int, err error) {
	if ns, err = openOwn(); err != nil {
		return nil, -1, err
	}
	if c, err = Dial(); err != nil {
		unix.Close(ns)
		return nil, -1, err
	}
	if err = c.SetUp(loopback, 0); err != nil {
		c.Close()
		unix.Close(ns)
		return nil, -1, err
	}
	return c, ns, nil
}

// Close closes the Conn.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// request is a netlink message that is being put together.
type request struct{ b []byte }

func newRequest(kind, flags uint16, body ...byte) *request {
	r := &request{make([]byte, unix.NLMSG_HDRLEN, 256)}
	binary.NativeEndian.PutUint16(r.b[4:], kind)
	binary.NativeEndian.PutUint16(r.b[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	r.b = append(r.b, body...)
	return r
}

// attr adds an attribute.
func (r *request) attr(kind uint16, value []byte) {
	r.b = binary.NativeEndian.AppendUint16(r.b, uint16(unix.SizeofRtAttr+len(value)))
	r.b = binary.NativeEndian.AppendUint16(r.b, kind)
	r.b = append(r.b, value...)
	for len(r.b)%unix.RTA_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) text(kind uint16, s string) { r.attr(kind, append([]byte(s), 0)) }
func (r *request) number(kind uint16, n uint32) {
	r.attr(kind, binary.NativeEndian.AppendUint32(nil, n))
}

// nest adds an attribute that has attributes.
func (r *request) nest(kind uint16, fn func()) {
	at := len(r.b)
	r.attr(kind|unix.NLA_F_NESTED, nil)
	fn()
	binary.NativeEndian.PutUint16(r.b[at:], uint16(len(r.b)-at))
}

// do sends a request and waits for the kernel's answer. The message that came before it, if any, is returned.
func (c *Conn) do(r *request) (reply []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil, os.ErrClosed
	}
	c.seq++
	binary.NativeEndian.PutUint32(r.b, uint32(len(r.b)))
	binary.NativeEndian.PutUint32(r.b[8:], c.seq)
	if err := unix.Sendto(c.fd, r.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		for b := c.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				break
			}
			if binary.NativeEndian.Uint32(b[8:]) == c.seq {
				body := b[unix.NLMSG_HDRLEN:size]
				if binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
					reply = append([]byte(nil), body...)
				} else if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return nil, unix.Errno(-e)
				} else {
					return reply, nil
				}
			}
			b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}

// ifinfo is a struct ifinfomsg.
func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg) // any family, any type
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// Index returns the number of an interface. One that does not exist is ENODEV.
func (c *Conn) Index(name string) (int, error) {
	r := newRequest(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	b, err := c.do(r)
	if err == nil && len(b) < unix.SizeofIfInfomsg {
		err = unix.EBADMSG
	}
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return int(int32(binary.NativeEndian.Uint32(b[4:]))), nil
}

// SetUp brings an interface up, with an MTU in bytes; 0 leaves that.
func (c *Conn) SetUp(index, mtu int) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP, unix.IFF_UP)...)
	if mtu > 0 {
		r.number(unix.IFLA_MTU, uint32(mtu))
	}
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("bring up interface %d: %w", index, err)
	}
	return nil
}

// Rename gives an interface that is down another name.
func (c *Conn) Rename(index int, name string) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("call interface %d %s: %w", index, name, err)
	}
	return nil
}

// AddVLAN makes an interface for the frames of a parent that have the VLAN's tag, and brings it up.
func (c *Conn) AddVLAN(name string, parent int, id uint16) error {
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, unix.IFF_UP, unix.IFF_UP)...)
	r.text(unix.IFLA_IFNAME, name)
	r.number(unix.IFLA_LINK, uint32(parent))
	r.nest(unix.IFLA_LINKINFO, func() {
		r.text(unix.IFLA_INFO_KIND, "vlan")
		r.nest(unix.IFLA_INFO_DATA, func() { r.attr(unix.IFLA_VLAN_ID, binary.NativeEndian.AppendUint16(nil, id)) })
	})
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("make interface %s: %w", name, err)
	}
	return nil
}

// Modes of a macvlan, as of linux/if_link.h.
const (
	modeVEPA   = 2 // all frames go out, and come back for those beside it
	modeBridge = 4
)

func mode(reflect bool) uint32 {
	if reflect {
		return modeVEPA
	}
	return modeBridge
}

// Macvlan is an interface with an address of its own on another one.
type Macvlan struct {
	Name    string
	Parent  int // its number
	MAC     net.HardwareAddr
	MTU     int
	Reflect bool // frames to its neighbours on the parent go out too
	NS      int  // file descriptor of the network namespace that it is for; -1 is that of the Conn
}

// AddMacvlan makes a macvlan, which is down. Without a MAC the kernel chooses one.
func (c *Conn) AddMacvlan(m Macvlan) error {
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0)...)
	r.text(unix.IFLA_IFNAME, m.Name)
	r.number(unix.IFLA_LINK, uint32(m.Parent))
	if len(m.MAC) > 0 {
		r.attr(unix.IFLA_ADDRESS, m.MAC)
	}
	r.number(unix.IFLA_MTU, uint32(m.MTU))
	if m.NS >= 0 {
		r.number(unix.IFLA_NET_NS_FD, uint32(m.NS))
	}
	r.macvlan(mode(m.Reflect))
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("make interface %s: %w", m.Name, err)
	}
	return nil
}

// SetMAC gives an interface another address.
func (c *Conn) SetMAC(index int, mac net.HardwareAddr) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0)...)
	r.attr(unix.IFLA_ADDRESS, mac)
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("give interface %d the address %s: %w", index, mac, err)
	}
	return nil
}

// NoLinkLocal keeps the kernel from giving an interface that is down an IPv6 address when it comes up.
func (c *Conn) NoLinkLocal(index int) error {
	const genMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
	r := newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0)...)
	r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET6, func() { r.attr(genMode, []byte{none}) })
	})
	if _, err := c.do(r); err != nil && err != unix.EAFNOSUPPORT { // a kernel without IPv6
		return fmt.Errorf("set how interface %d gets addresses: %w", index, err)
	}
	return nil
}

func (r *request) macvlan(mode uint32) {
	const infoMode = 1 // IFLA_MACVLAN_MODE
	r.nest(unix.IFLA_LINKINFO, func() {
		r.text(unix.IFLA_INFO_KIND, "macvlan")
		r.nest(unix.IFLA_INFO_DATA, func() { r.number(infoMode, mode) })
	})
}

// SetReflect changes Macvlan.Reflect of an interface.
func (c *Conn) SetReflect(index int, reflect bool) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0)...)
	r.macvlan(mode(reflect))
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("set the mode of interface %d: %w", index, err)
	}
	return nil
}

// AddAddress gives an interface an address. That nobody else has it is known, and not asked for.
func (c *Conn) AddAddress(index int, p netip.Prefix) error {
	family := byte(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	body := binary.NativeEndian.AppendUint32([]byte{family, byte(p.Bits()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body...)
	r.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	r.attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("give interface %d the address %s: %w", index, p, err)
	}
	return nil
}

// AddGateway makes a gateway the one for all that is not near.
func (c *Conn) AddGateway(index int, gw netip.Addr) error {
	body := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	if gw.Is6() {
		body[0] = unix.AF_INET6
	}
	r := newRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body...)
	r.attr(unix.RTA_GATEWAY, gw.AsSlice())
	r.number(unix.RTA_OIF, uint32(index))
	if _, err := c.do(r); err != nil {
		return fmt.Errorf("route by %s: %w", gw, err)
	}
	return nil
}

// Delete removes an interface.
func (c *Conn) Delete(index int) error {
	if _, err := c.do(newRequest(unix.RTM_DELLINK, 0, ifinfo(index, 0, 0)...)); err != nil {
		return fmt.Errorf("remove interface %d: %w", index, err)
	}
	return nil
}
