package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/arcboxlabs/arcbox-go"
)

// portTexts returns what a running container publishes, as "127.0.0.1:8080->80/tcp" or "/run/a.sock->/srv/b.sock".
func portTexts(i arcbox.ContainerInfo) []string {
	var out []string
	for _, p := range i.Ports {
		out = append(out, fmt.Sprintf("%s->%d/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.ContainerPort, p.Protocol))
	}
	if i.State == arcbox.ContainerRunning || i.State == arcbox.ContainerPaused {
		for _, s := range i.Spec.Sockets {
			out = append(out, s.HostPath+"->"+s.ContainerPath)
		}
	}
	return out
}

func (c *cli) portCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "port CONTAINER [PORT[/udp]]",
		Short: "Show which ports of the host lead to those of a running container",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(nil, func(rt *arcbox.Runtime) error {
				info, err := rt.InspectContainer(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if len(args) == 1 {
					for _, text := range portTexts(info) {
						fmt.Fprintln(c.out, text)
					}
					return nil
				}
				return c.onePort(info, args[1])
			})
		},
	}
}

// onePort prints where on the host a port of a container is.
func (c *cli) onePort(info arcbox.ContainerInfo, text string) error {
	number, protocol, _ := strings.Cut(text, "/")
	if protocol == "" {
		protocol = "tcp"
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return &exitError{exitOwn, fmt.Errorf("no port %q: use a number, and /udp for UDP", text)}
	}
	found := false
	for _, p := range info.Ports {
		if p.ContainerPort == uint16(port) && p.Protocol == protocol {
			found = true
			fmt.Fprintln(c.out, netip.AddrPortFrom(p.HostIP, p.HostPort))
		}
	}
	if !found {
		return fmt.Errorf("container %s does not publish port %d/%s", info.Name, port, protocol)
	}
	return nil
}
