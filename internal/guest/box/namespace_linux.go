package box

import (
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/link"
)

// namespace is the network namespace of a container. It lives as long as this, and its processes.
type namespace struct {
	fd   int // negative for none
	conn *link.Conn

	// An interface that is there already, without an address: its number, 0 for none, and what it is.
	index int
	kind  kind
}

func noNamespace() namespace { return namespace{fd: -1} }

// makeNamespace makes a network namespace with a loopback interface. As in other container engines, any user in it may listen
// on any port and ping.
func makeNamespace() (namespace, error) {
	c, fd, err := link.Make(func() {
		for _, kv := range [][2]string{{"ip_unprivileged_port_start", "0"}, {"ping_group_range", "0 2147483647"}} {
			_ = os.WriteFile("/proc/sys/net/ipv4/"+kv[0], []byte(kv[1]), 0) // a kernel may have no such file
		}
	})
	if err != nil {
		return noNamespace(), err
	}
	return namespace{fd: fd, conn: c}, nil
}

func (n namespace) close() {
	if n.fd >= 0 {
		n.conn.Close()
		unix.Close(n.fd)
	}
}

// kind is what interfaces have in common but for their addresses.
type kind struct {
	name string
	vlan uint16
	mtu  int
}

// kindOf returns the kind of an interface. ok is false for one that is made when it is needed: the kernel gives it an
// IPv6 address by its MAC when it comes up.
func kindOf(i api.Interface) (k kind, ok bool) {
	return kind{i.Name, i.VLAN, i.MTU}, !hasIPv6(i)
}

func hasIPv6(i api.Interface) bool {
	return slices.ContainsFunc(i.Addresses, func(a string) bool { return strings.Contains(a, ":") })
}

// take returns a namespace for a container with the interfaces, that nobody has had. The spare one is there at once. The next
// spare one gets an interface as the first of these, or none.
func (n *networks) take(interfaces []api.Interface) (namespace, error) {
	n.mu.Lock()
	own := n.spare
	n.spare = noNamespace()
	if n.quiet == nil {
		n.quiet = time.AfterFunc(quietTime, n.refill)
	}
	n.quiet.Reset(quietTime)
	n.usual = kind{}
	if len(interfaces) > 0 {
		if k, ok := kindOf(interfaces[0]); ok {
			n.usual = k
		}
	}
	n.mu.Unlock()
	if own.fd < 0 {
		return makeNamespace()
	}
	fits := func(i api.Interface) bool {
		k, ok := kindOf(i)
		return ok && k == own.kind
	}
	if own.index == 0 || slices.ContainsFunc(interfaces, fits) {
		return own, nil
	}
	err := own.conn.Delete(own.index)
	if own.index = 0; err != nil {
		own.close()
		return noNamespace(), err
	}
	return own, nil
}

// quietTime is how long no container was made when the next spare namespace is made: those that come one after another do
// not wait for the kernel to make one for somebody else.
const quietTime = 3 * time.Second

// refill makes a spare namespace where there is none, with an interface where it can. What cannot be made is made, or told,
// when it is needed.
func (n *networks) refill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.spare.fd >= 0 {
		return
	}
	s, err := makeNamespace()
	if err != nil {
		return
	}
	if n.usual != (kind{}) && n.open() == nil {
		s.kind = n.usual
		if s.index, err = n.macvlan(api.Interface{Name: s.kind.name, VLAN: s.kind.vlan, MTU: s.kind.mtu}, nil, s); err != nil {
			s.close()
			return
		}
	}
	n.spare = s
}
