package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

func (c *cli) networkCommand() *cobra.Command {
	n := &cobra.Command{Use: "network", Short: "Create, list, look at and remove networks, and change those of containers"}
	n.AddCommand(c.networkCreate(), c.networkList(), c.networkInspect(), c.networkPrune(), c.networkConnect(), c.networkDisconnect(),
		c.each("rm NETWORK...", "Remove networks without containers", func(ctx context.Context, rt *arcbox.Runtime, name string) error {
			return rt.RemoveNetwork(ctx, name)
		}))
	return n
}

func (c *cli) networkCreate() *cobra.Command {
	var labels, subnets []string
	var gateway string
	var spec arcbox.NetworkSpec
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Create a network",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name = args[0]
			var err error
			if spec.Labels, err = pairs("--label", labels, true); err != nil {
				return &exitError{exitOwn, err}
			}
			if err := addressFlags(&spec, subnets, gateway); err != nil {
				return &exitError{exitOwn, err}
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.CreateNetwork(cmd.Context(), spec)
				if err == nil {
					fmt.Fprintln(c.out, info.ID)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&labels, "label", "l", nil, "set the label `KEY=VALUE`")
	f.StringArrayVar(&subnets, "subnet", nil, "addresses of the network as a `CIDR`; one of IPv4 and one of IPv6")
	f.StringVar(&gateway, "gateway", "", "`address` of the host in the IPv4 subnet")
	f.BoolVar(&spec.IPv6, "ipv6", false, "give containers IPv6 addresses too")
	f.BoolVar(&spec.Internal, "internal", false, "let nothing go outside")
	return cmd
}

func addressFlags(spec *arcbox.NetworkSpec, subnets []string, gateway string) (err error) {
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("flag --subnet: %w", err)
		}
		if p.Addr().Is4() {
			spec.Subnet = p
		} else {
			spec.Subnet6 = p
		}
	}
	if gateway != "" {
		if spec.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return fmt.Errorf("flag --gateway: %w", err)
		}
	}
	return nil
}

func (c *cli) networkList() *cobra.Command {
	var opts arcbox.ListNetworksOptions
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List networks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list, err := rt.ListNetworks(cmd.Context(), opts)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tNAME\tSUBNET\tCONTAINERS")
				for _, n := range list {
					var names []string
					for _, m := range n.Members {
						names = append(names, m.Name)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.ID[:12], n.Spec.Name, n.Spec.Subnet, strings.Join(names, ", "))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().StringArrayVar(&opts.Labels, "label", nil, "only those with the label `KEY[=VALUE]`")
	cmd.Flags().StringVar(&opts.Name, "name", "", "only those with this `part` of a name")
	return cmd
}

func (c *cli) networkInspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NETWORK...",
		Short: "Print what there is of networks as JSON",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				list := make([]map[string]any, len(args))
				for k, name := range args {
					i, err := rt.InspectNetwork(cmd.Context(), name)
					if err != nil {
						return err
					}
					// The functions of a spec are no data; a network that a command made has none.
					list[k] = map[string]any{
						"ID": i.ID, "Created": i.Created, "Name": i.Spec.Name, "Subnet": i.Spec.Subnet, "Gateway": i.Spec.Gateway,
						"IPv6": i.Spec.IPv6, "Subnet6": i.Spec.Subnet6, "Internal": i.Spec.Internal, "Labels": i.Spec.Labels,
						"Egress": i.Spec.Egress, "Hosts": i.Spec.Hosts, "Services": i.Spec.Services, "Members": i.Members,
					}
				}
				enc := json.NewEncoder(c.out)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			})
		},
	}
}

func (c *cli) networkPrune() *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Remove the networks without containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				gone, err := rt.PruneNetworks(cmd.Context())
				for _, n := range gone {
					fmt.Fprintln(c.out, n.Spec.Name)
				}
				return err
			})
		},
	}
}

func (c *cli) networkConnect() *cobra.Command {
	var ip string
	var a arcbox.NetworkAttachment
	cmd := &cobra.Command{
		Use:   "connect [flags] NETWORK CONTAINER",
		Short: "Add a container, running or not, to a network",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.Network = args[0]
			if ip != "" {
				var err error
				if a.IPv4, err = netip.ParseAddr(ip); err != nil {
					return &exitError{exitOwn, fmt.Errorf("flag --ip: %w", err)}
				}
			}
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error { return rt.ConnectNetwork(cmd.Context(), args[1], a) })
		},
	}
	cmd.Flags().StringVar(&ip, "ip", "", "a free `address` of the network")
	cmd.Flags().StringArrayVar(&a.Aliases, "alias", nil, "one more `name` of the container there")
	return cmd
}

func (c *cli) networkDisconnect() *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect NETWORK CONTAINER",
		Short: "Take a container, running or not, out of a network",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error { return rt.DisconnectNetwork(cmd.Context(), args[1], args[0]) })
		},
	}
}

// networkFlags are the flags of run and create about networks.
type networkFlags struct {
	networks, aliases, publish []string
	ip                         string
}

// apply sets what the flags say. --ip and --network-alias are of the first network.
func (f networkFlags) apply(s *arcbox.ContainerSpec) error {
	for _, n := range f.networks {
		if n == arcbox.NetworkNone || n == arcbox.NetworkMachine || strings.HasPrefix(n, "container:") {
			if len(f.networks) > 1 {
				return fmt.Errorf("flag --network %q: it excludes other networks", n)
			}
			s.Network = n
			continue
		}
		s.Networks = append(s.Networks, arcbox.NetworkAttachment{Network: n})
	}
	if f.ip != "" || len(f.aliases) > 0 {
		if len(s.Networks) == 0 {
			if s.Network != "" {
				return fmt.Errorf("flag --ip or --network-alias: the network %s is not the container's own", s.Network)
			}
			s.Networks = []arcbox.NetworkAttachment{{Network: arcbox.DefaultNetwork}}
		}
		s.Networks[0].Aliases = f.aliases
		if f.ip != "" {
			a, err := netip.ParseAddr(f.ip)
			if err != nil {
				return fmt.Errorf("flag --ip: %w", err)
			}
			s.Networks[0].IPv4 = a
		}
	}
	for _, text := range f.publish {
		if strings.HasPrefix(text, "/") || strings.HasPrefix(text, ".") {
			p, err := publishSocketFlag(text)
			if err != nil {
				return err
			}
			s.Sockets = append(s.Sockets, p)
			continue
		}
		p, err := publishFlag(text)
		if err != nil {
			return err
		}
		s.Ports = append(s.Ports, p)
	}
	return nil
}

// publishFlag reads the value of -p: [[IP:]HOST:]CONTAINER[/PROTOCOL], where HOST and CONTAINER may be ranges of one length.
func publishFlag(text string) (p arcbox.PortMapping, err error) {
	bad := func(why string) (arcbox.PortMapping, error) {
		return p, fmt.Errorf("flag --publish %q: %s: use [[IP:]HOST:]CONTAINER[/tcp|udp]", text, why)
	}
	rest, protocol, _ := strings.Cut(text, "/")
	p.Protocol = protocol
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host := rest[:i]
		rest = rest[i+1:]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			if p.HostIP, err = netip.ParseAddr(strings.Trim(host[:i], "[]")); err != nil {
				return bad("no address before the ports")
			}
			host = host[i+1:]
		}
		if host != "" {
			first, count, ok := portRange(host)
			if !ok {
				return bad("no port of the host")
			}
			p.HostPort, p.Count = first, count
		}
	}
	first, count, ok := portRange(rest)
	if !ok || p.HostPort != 0 && count != p.Count {
		return bad("no port of the container, or ranges of two lengths")
	}
	p.ContainerPort, p.Count = first, count
	return p, nil
}

// publishSocketFlag reads the value of -p for a Unix socket: HOSTPATH:CONTAINERPATH.
func publishSocketFlag(text string) (p arcbox.SocketMapping, err error) {
	host, inside, ok := strings.Cut(text, ":")
	if !ok {
		return p, fmt.Errorf("flag --publish %q: use HOSTPATH:CONTAINERPATH for a socket", text)
	}
	p.ContainerPath = inside
	p.HostPath, err = filepath.Abs(host)
	return p, err
}

func portRange(s string) (first uint16, count int, ok bool) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	return uint16(x), int(y) - int(x) + 1, err1 == nil && err2 == nil && y >= x
}
