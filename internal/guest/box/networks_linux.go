package box

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/link"
)

// The machine's interface. It is given another name than the kernel's: the interface of a container, which is made from
// here, may not have the name of one that is here.
const (
	kernelName = "eth0"
	nicName    = "nic"
)

// networks is the machine's end of the networks.
type networks struct {
	mu    sync.Mutex
	conn  *link.Conn // nil until it is needed
	nic   int        // its number
	vlans map[uint16]int

	boxes map[string]*sandbox // by id, for those who share a network

	spare  namespace   // for the next container
	usual  kind        // of its interface
	quiet  *time.Timer // makes the next one; nil before the first
	closed bool

	deleting map[address]chan struct{} // closed when the interface is gone
	deleters sync.WaitGroup            // one for each container whose interfaces are being deleted
	slots    chan struct{}             // has a token for each of them
}

// maxDeleters bounds how many containers' interfaces are being deleted at a time. The next removal waits.
const maxDeleters = 16

// address is what two interfaces of the machine cannot have at a time.
type address struct {
	vlan uint16
	mac  string
}

func newNetworks() *networks {
	return &networks{
		deleting: make(map[address]chan struct{}), slots: make(chan struct{}, maxDeleters),
		spare: noNamespace(), usual: kind{api.FirstInterface, api.FirstVLAN, api.LargestMTU},
	}
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
		// The machine itself is no member of any network: neither this nor what is made on it sends anything of its own.
		for _, name := range []string{kernelName, "default"} {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0) // a kernel without IPv6 has no such file
		}
		if err = c.Rename(index, nicName); err == nil {
			err = c.SetUp(index, api.LargestMTU)
		}
	}
	if err != nil {
		c.Close()
		return err
	}
	n.conn, n.nic, n.vlans = c, index, make(map[uint16]int)
	return nil
}

// prepare makes what the first container needs, before it needs it.
func (n *networks) prepare() error {
	n.mu.Lock()
	err := n.open()
	n.mu.Unlock()
	if err != nil && !errors.Is(err, errs.ErrUnsupported) {
		return err
	}
	n.refill()
	return nil
}

func (n *networks) close() {
	n.deleters.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		n.conn.Close()
	}
	n.closed = true
	if n.quiet != nil {
		n.quiet.Stop() // where refill is about to be called, it does nothing
	}
	n.spare.close()
	n.spare = noNamespace()
}

// vlan returns the number of the interface of a VLAN, which is made where there is none yet. n.mu is held.
func (n *networks) vlan(id uint16) (int, error) {
	if i, ok := n.vlans[id]; ok {
		return i, nil
	}
	name := "vlan" + strconv.Itoa(int(id))
	err := n.conn.AddVLAN(name, n.nic, id)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	i, err := n.conn.Index(name)
	if err != nil {
		return 0, err
	}
	n.vlans[id] = i
	return i, nil
}

// add makes the interface of a container in its network namespace, and returns its number there.
func (n *networks) add(i api.Interface, own namespace) (int, error) {
	hw, err := net.ParseMAC(i.MAC)
	if err != nil {
		return 0, err
	}
	at := address{i.VLAN, i.MAC}
	n.mu.Lock()
	defer n.mu.Unlock()
	for gone := n.deleting[at]; gone != nil; gone = n.deleting[at] {
		n.mu.Unlock()
		<-gone
		n.mu.Lock()
	}
	if k, ok := kindOf(i); !ok || own.index == 0 || k != own.kind {
		return n.macvlan(i, hw, own)
	}
	if i.Reflect {
		if err := own.conn.SetReflect(own.index, true); err != nil {
			return 0, err
		}
	}
	return own.index, own.conn.SetMAC(own.index, hw)
}

// macvlan makes an interface in a network namespace, and brings it up. Where it has no IPv6 address, it gets none by itself.
// n.mu is held.
func (n *networks) macvlan(i api.Interface, hw net.HardwareAddr, in namespace) (int, error) {
	if err := n.open(); err != nil {
		return 0, err
	}
	parent, err := n.vlan(i.VLAN)
	if err != nil {
		return 0, err
	}
	if err := n.conn.AddMacvlan(link.Macvlan{Name: i.Name, Parent: parent, MAC: hw, MTU: i.MTU, Reflect: i.Reflect, NS: in.fd}); err != nil {
		return 0, err
	}
	index, err := in.conn.Index(i.Name)
	if err == nil && !hasIPv6(i) {
		err = in.conn.NoLinkLocal(index)
	}
	if err == nil {
		err = in.conn.SetUp(index, 0)
	}
	return index, err
}

// deleteLater deletes the interfaces of a container that is being removed in the background: the kernel waits, for each, until
// all that may still look at it has ended. Another container may ask for its address at once, and waits then.
func (n *networks) deleteLater(has map[string]ownInterface, own namespace) {
	n.slots <- struct{}{}
	n.mu.Lock()
	gone := make(chan struct{})
	for _, i := range has {
		n.deleting[i.address] = gone
	}
	n.mu.Unlock()
	n.deleters.Go(func() {
		defer func() { <-n.slots }()
		for _, i := range has {
			_ = own.conn.Delete(i.index) // it ends with the namespace otherwise
		}
		own.close()
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, i := range has {
			delete(n.deleting, i.address)
		}
		close(gone)
	})
}

// ownInterface is an interface of a container.
type ownInterface struct {
	index int
	address
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
