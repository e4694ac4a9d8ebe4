package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/splice"
)

// Publish asks for a port of the host that leads to one of a container.
type Publish struct {
	Protocol      string     `json:"protocol,omitempty"`  // tcp or udp; "" is tcp
	HostIP        netip.Addr `json:"host_ip,omitzero"`    // zero is 127.0.0.1
	HostPort      uint16     `json:"host_port,omitempty"` // 0 is a free one
	ContainerPort uint16     `json:"container_port"`
}

// Published is a port that is published.
type Published Publish

// The bounds of a published port.
const (
	maxAccepted = 4096
	maxClients  = 1024
	acceptPause = 50 * time.Millisecond // after an error, as when the process may open no more files
)

// Validate checks a request for a port.
func (p Publish) Validate() error {
	if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" {
		return invalid("protocol of a port", p.Protocol, "use tcp or udp")
	}
	if p.ContainerPort == 0 {
		return invalid("container port", p.ContainerPort, "use 1 to 65535")
	}
	return nil
}

// publish opens the ports, all or none.
func (l *Lease) publish(all []Publish) error {
	for _, p := range all {
		if err := p.Validate(); err != nil {
			return err
		}
		if !p.HostIP.IsValid() {
			p.HostIP = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if err := l.open(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lease) open(p Publish) error {
	at := netip.AddrPortFrom(p.HostIP, p.HostPort)
	var bound net.Addr
	if p.Protocol == "udp" {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return portError(p, err)
		}
		bound = pc.LocalAddr()
		l.listeners = append(l.listeners, pc)
		l.wg.Go(func() { l.relay(pc, p.ContainerPort) })
	} else {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return portError(p, err)
		}
		bound = ln.Addr()
		l.listeners = append(l.listeners, ln)
		l.wg.Go(func() { l.accept(ln, p.ContainerPort) })
	}
	if a, err := netip.ParseAddrPort(bound.String()); err == nil {
		p.HostPort = a.Port()
	}
	l.bound = append(l.bound, Published(p))
	return nil
}

func portError(p Publish, err error) error {
	at := netip.AddrPortFrom(p.HostIP, p.HostPort)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("publish port %s/%s: %w: something listens there: choose another port, or 0 for a free one", at, p.Protocol, errs.ErrConflict)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("publish port %s/%s: %w: the host has no such address", at, p.Protocol, errs.ErrInvalid)
	}
	return fmt.Errorf("publish port %s/%s: %w: %w", at, p.Protocol, errs.ErrUnavailable, err)
}

// accept joins the connections of a listener to the container.
func (l *Lease) accept(ln *net.TCPListener, port uint16) {
	defer ln.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxAccepted)
	for {
		c, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(acceptPause):
			case <-l.ctx.Done():
				return
			}
			continue
		}
		slots <- struct{}{}
		conns.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(l.ctx, dialTimeout)
			defer cancel()
			in, err := l.Dial(ctx, "tcp", netip.Addr{}, port)
			if err != nil {
				splice.Reset(c)
				return
			}
			splice.Join(l.ctx, c, in)
		})
	}
}

// relay joins the clients of a UDP port to the container: each has a connection of its own there.
func (l *Lease) relay(pc *net.UDPConn, port uint16) {
	var clients sync.WaitGroup
	defer clients.Wait()
	defer pc.Close()
	var mu sync.Mutex
	known := make(map[netip.AddrPort]net.Conn)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what an earlier packet has met
		}
		mu.Lock()
		c, full := known[from], len(known) >= maxClients
		mu.Unlock()
		if c == nil {
			if full {
				continue
			}
			if c, err = l.dialUDP(port); err != nil {
				continue
			}
			mu.Lock()
			known[from] = c
			mu.Unlock()
			clients.Go(func() {
				answers(l.ctx, pc, c, from)
				mu.Lock()
				delete(known, from)
				mu.Unlock()
			})
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle)) // a closed one is left to its goroutine
		_, _ = c.Write(buf[:n])                        // a packet may be lost
	}
}

// answers sends a client what comes for it until nothing has come, either way, for a time.
func answers(ctx context.Context, pc *net.UDPConn, c net.Conn, to netip.AddrPort) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = pc.WriteToUDPAddrPort(buf[:n], to)
	}
}

// dialUDP opens a connection of packets to a port of the container.
func (l *Lease) dialUDP(port uint16) (net.Conn, error) {
	l.mu.Lock()
	places := l.places
	l.mu.Unlock()
	if len(places) == 0 || !places[0].gw.begin() {
		return nil, errs.ErrClosed
	}
	p := places[0]
	defer p.gw.end()
	local, remote := fullAddress(netip.AddrPortFrom(p.gw.spec.Gateway, 0)), fullAddress(netip.AddrPortFrom(p.endpoint.IPv4, port))
	return gonet.DialUDP(p.gw.stack, &local, &remote, protocolOf(p.endpoint.IPv4))
}
