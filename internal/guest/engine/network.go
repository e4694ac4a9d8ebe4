package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The limits of a container's network.
const (
	maxInterfaces = 64
	maxAddresses  = 16 // of one interface
	maxIfName     = 15 // bytes: what the kernel takes
)

// Networker is a Sandbox whose interfaces can be changed.
type Networker interface {
	// SetNetwork adds and removes interfaces. The request was checked.
	SetNetwork(ctx context.Context, req api.SetNetworkRequest) error
}

func checkNetwork(n api.Network) error {
	switch n.Mode {
	case api.NetworkOwn, api.NetworkMachine:
	case api.NetworkContainer:
		if err := CheckID(n.Container); err != nil {
			return err
		}
	default:
		return fmt.Errorf("network mode %.40q: %w: want machine, container or nothing", n.Mode, errs.ErrInvalid)
	}
	if n.Mode != api.NetworkOwn && len(n.Interfaces) > 0 || len(n.Interfaces) > maxInterfaces || len(n.Nameservers) > maxAddresses {
		return fmt.Errorf("network: %w: %d interfaces and %d name servers in mode %q", errs.ErrInvalid, len(n.Interfaces), len(n.Nameservers), n.Mode)
	}
	for _, a := range n.Nameservers {
		if p, err := netip.ParseAddr(a); err != nil || p.Zone() != "" {
			return fmt.Errorf("name server %.80q: %w", a, errs.ErrInvalid)
		}
	}
	return checkInterfaces(n.Interfaces)
}

func checkInterfaces(all []api.Interface) error {
	seen := make(map[string]bool)
	for _, i := range all {
		name := i.Name
		if name == "" || len(name) > maxIfName || strings.ContainsAny(name, "/ \x00:\n\t") || name == "lo" || name == "." || name == ".." || seen[name] {
			return fmt.Errorf("interface %.40q: %w name", name, errs.ErrInvalid)
		}
		seen[name] = true
		if hw, err := net.ParseMAC(i.MAC); err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return fmt.Errorf("interface %s: %w address %.40q", name, errs.ErrInvalid, i.MAC)
		}
		if i.VLAN < 1 || i.VLAN > 4094 || i.MTU < 1280 || i.MTU > 65535 || len(i.Addresses) > maxAddresses || len(i.Gateways) > maxAddresses {
			return fmt.Errorf("interface %s: %w VLAN %d, MTU %d, or number of addresses", name, errs.ErrInvalid, i.VLAN, i.MTU)
		}
		for _, a := range i.Addresses {
			if _, err := netip.ParsePrefix(a); err != nil {
				return fmt.Errorf("interface %s: %w address %.80q", name, errs.ErrInvalid, a)
			}
		}
		for _, g := range i.Gateways {
			if a, err := netip.ParseAddr(g); err != nil || a.Zone() != "" {
				return fmt.Errorf("interface %s: %w gateway %.80q", name, errs.ErrInvalid, g)
			}
		}
	}
	return nil
}

func (e *Engine) setNetwork(ctx context.Context, req api.SetNetworkRequest) (api.SetNetworkReply, error) {
	c, err := e.get(req.ID)
	if err != nil {
		return api.SetNetworkReply{}, err
	}
	if err := checkInterfaces(req.Set); err != nil {
		return api.SetNetworkReply{}, err
	}
	n, ok := c.sb.(Networker)
	if !ok {
		return api.SetNetworkReply{}, fmt.Errorf("set the network of container %s: %w", c.id, errs.ErrUnsupported)
	}
	if len(req.Set) > maxInterfaces || len(req.Remove) > maxInterfaces {
		return api.SetNetworkReply{}, fmt.Errorf("set the network of container %s: %w: too many interfaces", c.id, errs.ErrInvalid)
	}
	return api.SetNetworkReply{}, n.SetNetwork(ctx, req)
}
