package box

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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

// network is what a container has of networks.
type network struct {
	all  *networks
	mu   sync.Mutex
	ns   int                     // file descriptor of its namespace; -1 when it is closed
	conn *link.Conn              // in the namespace
	has  map[string]ownInterface // by name

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
	n := &network{all: all, ns: ns, has: make(map[string]ownInterface), ready: make(chan struct{})}
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
	n.has[i.Name] = ownInterface{index, address{i.VLAN, i.MAC}}
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
		if own, ok := n.has[name]; ok {
			delete(n.has, name)
			if err := n.conn.Delete(own.index); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
	}
	for _, i := range req.Set {
		if own, ok := n.has[i.Name]; ok {
			if err := n.conn.SetReflect(own.index, i.Reflect); err != nil {
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

// close removes the interfaces, in the background. The kernel would take its time.
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
	n.all.deleteLater(n.has, n.conn, n.ns)
	n.ns, n.conn, n.has = -1, nil, nil
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
