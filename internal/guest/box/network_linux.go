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
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
)

var _ engine.Networker = (*sandbox)(nil)

// network is what a container has of networks: a namespace, which is made before its process, and interfaces there.
type network struct {
	all   *networks
	made  chan struct{} // closed when the namespace is there, or cannot be
	ready chan struct{} // closed when the first interfaces are there, or cannot be
	err   error         // of either; readable after ready

	mu  sync.Mutex
	own namespace
	has map[string]ownInterface // by name
}

// newNetwork makes a namespace with interfaces, in the background: the rest of the container is made meanwhile.
func newNetwork(all *networks, interfaces []api.Interface) *network {
	n := &network{all: all, has: make(map[string]ownInterface), made: make(chan struct{}), ready: make(chan struct{})}
	go func() { // close waits for it
		defer close(n.ready)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.own, n.err = all.take(interfaces)
		close(n.made)
		for i := 0; i < len(interfaces) && n.err == nil; i++ {
			n.err = n.add(interfaces[i])
		}
	}()
	return n
}

// namespace returns a file descriptor of the namespace, which is open until close. Without one, wait tells why.
func (n *network) namespace() (fd int, ok bool) {
	<-n.made
	return n.own.fd, n.own.fd >= 0
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

// add makes one interface. n.mu is held.
func (n *network) add(i api.Interface) error {
	index, err := n.all.add(i, n.own)
	if err != nil {
		return err
	}
	if index == n.own.index {
		n.own.index = 0 // it is taken
	}
	n.has[i.Name] = ownInterface{index, address{i.VLAN, i.MAC}}
	for _, a := range i.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		if err := n.own.conn.AddAddress(index, p); err != nil {
			return err
		}
	}
	for _, g := range i.Gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return err
		}
		if err := n.own.conn.AddGateway(index, a); err != nil {
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
	if n.own.fd < 0 {
		return fmt.Errorf("%w: the container is removed", errs.ErrConflict)
	}
	for _, name := range req.Remove {
		if own, ok := n.has[name]; ok {
			delete(n.has, name)
			if err := n.own.conn.Delete(own.index); err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		}
	}
	for _, i := range req.Set {
		if own, ok := n.has[i.Name]; ok {
			if err := n.own.conn.SetReflect(own.index, i.Reflect); err != nil {
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

// close removes the interfaces, in the background. The kernel would take its time. A second call does nothing.
func (n *network) close() {
	if n == nil {
		return
	}
	<-n.ready
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own.fd >= 0 {
		n.all.deleteLater(n.has, n.own)
		n.own, n.has = noNamespace(), nil
	}
}

// SetNetwork implements engine.Networker.
func (s *sandbox) SetNetwork(_ context.Context, req api.SetNetworkRequest) error {
	if s.net == nil {
		return fmt.Errorf("%w: the container has no network of its own", errs.ErrConflict)
	}
	return s.net.set(req)
}

// joinNetwork lets a container's process join its own network, or that of another container. Without either it is in the
// machine's. Variables of the kernel that the process sets may be of its interfaces: they are there then.
func (b *Box) joinNetwork(st *stage, files *descriptors, own *network, n api.Network) (err error) {
	switch n.Mode {
	case api.NetworkOwn:
		ok := false
		if st.netns, ok = own.namespace(); !ok || len(st.sysctls) > 0 {
			return own.wait()
		}
	case api.NetworkContainer:
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
