package box

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/link"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

var _ engine.Networker = (*sandbox)(nil)

// The machine's interface. It is given another name than the kernel's: the interface of a container, which is made from
// here, may not have the name of one that is here.
const (
	kernelName = "eth0"
	nicName    = "nic"
	nicMTU     = 65000 // bytes: the largest packet that it takes
)

// networks is the machine's end of the networks.
type networks struct {
	mu    sync.Mutex
	conn  *link.Conn // nil until it is needed
	nic   int        // its number
	vlans map[uint16]int

	boxes map[string]*sandbox // by id, for those who share a network
}

// open finds the machine's interface and brings it up. n.mu is held.
func (n *networks) open() error {
	if n.conn != nil {
		return nil
	}
	c, err := link.Dial()
	if err != nil {
		return err
	}
	index, err := c.Index(kernelName)
	if errors.Is(err, unix.ENODEV) {
		c.Close()
		return fmt.Errorf("%w: the machine has no network interface", errs.ErrUnsupported)
	}
	if err == nil {
		// The machine itself is no member of any network.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+kernelName+"/disable_ipv6", []byte("1"), 0) // a kernel without IPv6 has no such file
		if err = c.Rename(index, nicName); err == nil {
			err = c.SetUp(index, nicMTU)
		}
	}
	if err != nil {
		c.Close()
		return err
	}
	n.conn, n.nic, n.vlans = c, index, make(map[uint16]int)
	return nil
}

// prepare brings the machine's interface up before the first container needs it.
func (n *networks) prepare() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.open(); err != nil && !errors.Is(err, errs.ErrUnsupported) {
		return err
	}
	return nil
}

func (n *networks) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		n.conn.Close()
	}
}

// vlan returns the number of the interface of a VLAN, which is made where there is none yet. n.mu is held.
func (n *networks) vlan(id uint16) (int, error) {
	if i, ok := n.vlans[id]; ok {
		return i, nil
	}
	name := "vlan" + strconv.Itoa(int(id))
	// No address is to be made for it, and so nothing of its own to be sent.
	err := n.conn.AddVLAN(name, n.nic, id)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0) // as above
	i, err := n.conn.Index(name)
	if err != nil {
		return 0, err
	}
	n.vlans[id] = i
	return i, nil
}

// macvlan makes the interface of a container in its network namespace.
func (n *networks) macvlan(i api.Interface, ns int) error {
	hw, err := net.ParseMAC(i.MAC)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.open(); err != nil {
		return err
	}
	parent, err := n.vlan(i.VLAN)
	if err != nil {
		return err
	}
	return n.conn.AddMacvlan(link.Macvlan{Name: i.Name, Parent: parent, MAC: hw, MTU: i.MTU, Reflect: i.Reflect, NS: ns})
}

// network is what a container has of networks.
type network struct {
	all  *networks
	mu   sync.Mutex
	ns   int        // file descriptor of its namespace; -1 when it is closed
	conn *link.Conn // in the namespace
	has  map[string]int

	ready chan struct{} // closed when the first interfaces are there, or cannot be
	err   error         // readable after that
}

// newNetwork makes interfaces in the namespace of a process, in the background: the process prepares itself meanwhile. It
// is nil for a process that has ended, whose exit tells why.
func newNetwork(all *networks, child *proc.Child, interfaces []api.Interface) *network {
	ns, err := openNetwork(child)
	if err != nil {
		return nil
	}
	n := &network{all: all, ns: ns, has: make(map[string]int), ready: make(chan struct{})}
	if len(interfaces) == 0 {
		close(n.ready)
		return n
	}
	go func() {
		defer close(n.ready)
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, i := range interfaces {
			if n.err = n.add(i); n.err != nil {
				return
			}
		}
	}()
	return n
}

// wait waits for the first interfaces.
func (n *network) wait() error {
	if n == nil {
		return nil
	}
	<-n.ready
	return n.err
}

// openNetwork opens the network namespace of a process. A number may be another's as soon as the process was waited for.
func openNetwork(child *proc.Child) (int, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(child.PID())+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	select {
	case <-child.Done():
		unix.Close(fd)
		return -1, unix.ESRCH
	default:
		return fd, nil
	}
}

// open connects to the namespace. n.mu is held.
func (n *network) open() (err error) {
	if n.ns < 0 {
		return fmt.Errorf("%w: the container is removed", errs.ErrConflict)
	}
	if n.conn == nil {
		n.conn, err = link.DialIn(n.ns)
	}
	return err
}

// add makes one interface. n.mu is held.
func (n *network) add(i api.Interface) error {
	if err := n.open(); err != nil {
		return err
	}
	if err := n.all.macvlan(i, n.ns); err != nil {
		return err
	}
	index, err := n.conn.Index(i.Name)
	if err != nil {
		return err
	}
	n.has[i.Name] = index
	for _, a := range i.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		if err := n.conn.AddAddress(index, p); err != nil {
			return err
		}
	}
	for _, g := range i.Gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return err
		}
		if err := n.conn.AddGateway(index, a); err != nil {
			return err
		}
	}
	return nil
}

// set changes the interfaces.
func (n *network) set(req api.SetNetworkRequest) error {
	<-n.ready
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.open(); err != nil {
		return err
	}
	for _, name := range req.Remove {
		if index, ok := n.has[name]; ok {
			delete(n.has, name)
			if err := n.conn.Delete(index); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
	}
	for _, i := range req.Set {
		if index, ok := n.has[i.Name]; ok {
			if err := n.conn.SetReflect(index, i.Reflect); err != nil {
				return err
			}
			continue
		}
		if err := n.add(i); err != nil {
			return err
		}
	}
	return nil
}

// close removes the interfaces, so that another container can have their addresses at once. The kernel would take its
// time.
func (n *network) close() {
	if n == nil {
		return
	}
	<-n.ready
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ns < 0 {
		return
	}
	for _, index := range n.has {
		_ = n.conn.Delete(index) // it ends with the namespace otherwise
	}
	if n.conn != nil {
		n.conn.Close()
	}
	unix.Close(n.ns)
	n.ns = -1
}

// SetNetwork implements engine.Networker.
func (s *sandbox) SetNetwork(_ context.Context, req api.SetNetworkRequest) error {
	if s.net == nil {
		return fmt.Errorf("%w: the container has no network of its own", errs.ErrConflict)
	}
	return s.net.set(req)
}

// shareNetwork lets a container have the network of another one, or of the machine.
func (b *Box) shareNetwork(st *stage, files *descriptors, n api.Network) (err error) {
	st.shareNet = n.Mode != api.NetworkOwn
	if n.Mode == api.NetworkContainer {
		st.netns, err = files.add(b.nets.join(n.Container))
	}
	return err
}

// join opens the network namespace of another container.
func (n *networks) join(id string) (int, error) {
	n.mu.Lock()
	other := n.boxes[id]
	n.mu.Unlock()
	if other == nil {
		return -1, fmt.Errorf("share the network of container %s: %w: it does not run in this machine: start it first", id, errs.ErrConflict)
	}
	fd, err := openNetwork(other.child)
	if err != nil {
		return -1, fmt.Errorf("share the network of container %s: %w: it has ended", id, errs.ErrConflict)
	}
	return fd, nil
}

func (n *networks) register(id string, s *sandbox) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes == nil {
		n.boxes = make(map[string]*sandbox)
	}
	n.boxes[id] = s
}

func (n *networks) forget(id string, s *sandbox) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[id] == s {
		delete(n.boxes, id)
	}
}

// resolvConf is the text of a container's /etc/resolv.conf.
func resolvConf(servers []string) string {
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	return b.String()
}

// ownHosts is the line of /etc/hosts with the container's own name.
func ownHosts(n api.Network, hostname string) string {
	if len(n.Interfaces) > 0 && len(n.Interfaces[0].Addresses) > 0 {
		a, _, _ := strings.Cut(n.Interfaces[0].Addresses[0], "/")
		return a + "\t" + hostname + "\n"
	}
	return "127.0.1.1\t" + hostname + "\n"
}
