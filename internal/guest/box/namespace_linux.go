package box

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/guest/link"
)

// namespace is the network namespace of a container. It lives as long as this, and its processes.
type namespace struct {
	fd   int // negative for none
	conn *link.Conn
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
	return namespace{fd, c}, nil
}

func (n namespace) close() {
	if n.fd >= 0 {
		n.conn.Close()
		unix.Close(n.fd)
	}
}

// take returns a namespace that nobody has had. The spare one is there at once.
func (n *networks) take() (namespace, error) {
	n.mu.Lock()
	spare := n.spare
	n.spare = noNamespace()
	n.mu.Unlock()
	if spare.fd >= 0 {
		return spare, nil
	}
	return makeNamespace()
}

// refill makes a spare namespace where there is none. That it cannot be made is told by take.
func (n *networks) refill() {
	n.mu.Lock()
	has := n.spare.fd >= 0
	n.mu.Unlock()
	if has {
		return
	}
	s, err := makeNamespace()
	if err != nil {
		return
	}
	n.mu.Lock()
	if n.spare.fd < 0 {
		n.spare, s = s, noNamespace()
	}
	n.mu.Unlock()
	s.close() // another one was faster
}
