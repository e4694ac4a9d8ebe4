package arcbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// start makes a container that runs until the test ends.
func start(t testing.TB, rt *arcbox.Runtime, spec arcbox.ContainerSpec) arcbox.ContainerInfo {
	t.Helper()
	ctx := testContext(t)
	if spec.Image == "" {
		spec.Image = "busybox:test"
	}
	if spec.Args == nil {
		spec.Args = []string{"sleep", "1000"}
	}
	i, err := rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = rt.RemoveContainer(context.Background(), i.ID, arcbox.RemoveOptions{Force: true}) // the test may have
	})
	require.NoError(t, rt.StartContainer(ctx, i.ID))
	i, err = rt.InspectContainer(ctx, i.ID)
	require.NoError(t, err)
	return i
}

// in runs a script in a running container and returns its output.
func in(t testing.TB, rt *arcbox.Runtime, ref, script string) (string, int) {
	t.Helper()
	ctx := testContext(t)
	var out bytes.Buffer
	p, err := rt.Exec(ctx, ref, arcbox.ExecSpec{Args: sh(script)}, arcbox.ExecOptions{Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	defer p.Close()
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	return out.String(), exit.Code
}

// web is a container that serves a page.
func web(name string, more arcbox.ContainerSpec) arcbox.ContainerSpec {
	more.Name = name
	more.Args = sh("mkdir -p /www && echo page of " + name + " > /www/index.html && exec httpd -f -h /www -p 80")
	return more
}

func newNetwork(t testing.TB, rt *arcbox.Runtime, spec arcbox.NetworkSpec) arcbox.NetworkInfo {
	t.Helper()
	n, err := rt.CreateNetwork(testContext(t), spec)
	require.NoError(t, err)
	t.Cleanup(func() { _ = rt.RemoveNetwork(context.Background(), n.ID) })
	return n
}

func get(t testing.TB, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

// datagrams answers each datagram with its text in capitals.
const datagrams = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 7))
print("ready", flush=True)
while True:
    text, peer = s.recvfrom(65536)
    s.sendto(text.upper(), peer)
`

// TestUDP sends datagrams to a published port, each from a socket of its own, and by name from another container.
func TestUDP(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "udp"})
	spec := arcbox.ContainerSpec{
		Name: "echo", Image: shared.realPrograms(t), Args: []string{"python3", "-c", datagrams},
		Networks: []arcbox.NetworkAttachment{{Network: "udp"}}, Ports: []arcbox.PortMapping{{ContainerPort: 7, Protocol: "udp"}},
	}
	server := start(t, rt, spec)
	require.NoError(t, rt.WaitFor(ctx, server.ID, arcbox.ForLog("ready", 1)))
	require.Len(t, server.Ports, 1)
	var peers []net.Conn
	for i := range 3 {
		c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", server.Ports[0].HostPort))
		require.NoError(t, err)
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		_, err = fmt.Fprintf(c, "from %d", i)
		require.NoError(t, err)
		peers = append(peers, c)
	}
	answer := make([]byte, 1<<16)
	for i, c := range peers {
		n, err := c.Read(answer)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("FROM ", i), string(answer[:n]))
	}
	client := spec
	client.Name, client.Ports = "", nil
	client.Args = []string{"python3", "-c", `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"x" * 9000, ("echo", 7))
print(s.recv(65536) == b"X" * 9000)
`}
	require.Equal(t, "True\n", run(t, rt, client, arcbox.RunOptions{}).stdout)
	require.NoError(t, rt.KillContainer(ctx, server.ID, "KILL"))
	_, err := rt.WaitContainer(ctx, server.ID, arcbox.WaitOptions{})
	require.NoError(t, err)
	c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", server.Ports[0].HostPort))
	require.NoError(t, err, "the port is free again")
	require.NoError(t, c.Close())
}

func TestNetworkOfContainers(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "front", IPv6: true})
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "back", Subnet: netip.MustParsePrefix("10.77.0.0/24")})
	fixed := netip.MustParseAddr("10.77.0.9")
	w := start(t, rt, web("web", arcbox.ContainerSpec{
		Networks: []arcbox.NetworkAttachment{{Network: "front", Aliases: []string{"www"}}, {Network: "back", IPv4: fixed}},
		Ports:    []arcbox.PortMapping{{ContainerPort: 80}, {ContainerPort: 8080, Count: 2}},
	}))
	require.NoError(t, rt.WaitFor(ctx, w.ID, arcbox.ForListeningPort(80)))
	front := []arcbox.NetworkAttachment{{Network: "front"}}
	c := start(t, rt, arcbox.ContainerSpec{Name: "client", Networks: front})
	stranger := start(t, rt, arcbox.ContainerSpec{Name: "stranger"})

	for _, name := range []string{"web", "www", w.ID[:12], w.Networks[0].IPv4.String(), "[" + w.Networks[0].IPv6.String() + "]"} {
		out, code := in(t, rt, c.ID, "timeout 20 wget -q -O - http://"+name+"/")
		require.Equal(t, "page of web\n", out, name)
		require.Zero(t, code)
	}
	_, code := in(t, rt, stranger.ID, "nslookup web")
	require.NotZero(t, code)
	_, code = in(t, rt, stranger.ID, "timeout 1 wget -q -O - http://"+w.Networks[0].IPv4.String())
	require.NotZero(t, code)

	require.Len(t, w.Ports, 3)
	require.NotZero(t, w.Ports[0].HostPort)
	at := fmt.Sprintf("127.0.0.1:%d", w.Ports[0].HostPort)
	require.Equal(t, "page of web\n", get(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+at))
	dialer := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return rt.Dial(ctx, "web", network, ":80")
	}}}
	require.Equal(t, "page of web\n", get(t, dialer, "http://whatever/"))

	// Networks come and go while it runs.
	back := func() string {
		out, _ := in(t, rt, stranger.ID, "timeout 2 wget -q -O - http://web/")
		return out
	}
	require.NoError(t, rt.ConnectNetwork(ctx, "stranger", arcbox.NetworkAttachment{Network: "back"}))
	require.Equal(t, "page of web\n", back())
	require.ErrorIs(t, rt.ConnectNetwork(ctx, "stranger", arcbox.NetworkAttachment{Network: "back"}), arcbox.ErrExists)
	require.ErrorIs(t, rt.RemoveNetwork(ctx, "back"), arcbox.ErrInUse)
	require.NoError(t, rt.DisconnectNetwork(ctx, "stranger", "back"))
	require.NotContains(t, back(), "page")
	out, _ := in(t, rt, stranger.ID, "ip addr show eth1")
	require.Contains(t, out, "can't find device")

	// Faults between containers of one machine.
	fast := func() int { _, code := in(t, rt, "client", "timeout 1 wget -q -O - http://web/"); return code }
	require.NoError(t, rt.SetNetworkFaults(ctx, "front", []arcbox.NetworkFault{{A: "client", B: "web", Partition: true}}))
	require.NotZero(t, fast())
	require.NoError(t, rt.SetNetworkFaults(ctx, "front", []arcbox.NetworkFault{{A: "client", B: "web", Reset: true}}))
	require.NotZero(t, fast())
	require.NoError(t, rt.SetNetworkFaults(ctx, "front", nil))
	require.Zero(t, fast())

	// Started again it has the same addresses, and its port is another or the same, but reached.
	require.NoError(t, rt.RestartContainer(ctx, "web", arcbox.StopOptions{Signal: "KILL"}))
	require.NoError(t, rt.WaitFor(ctx, w.ID, arcbox.ForListeningPort(80)))
	again, err := rt.InspectContainer(ctx, "web")
	require.NoError(t, err)
	require.Equal(t, w.Networks, again.Networks)
	require.Equal(t, "page of web\n", get(t, dialer, "http://whatever/"))
	require.NoError(t, rt.KillContainer(ctx, "web", "KILL"))
	_, err = rt.WaitContainer(ctx, "web", arcbox.WaitOptions{})
	require.NoError(t, err)
	_, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", again.Ports[0].HostPort))
	require.Error(t, err)
}

// TestSysctlsOfInterfaces sets variables of interfaces: these are there when a container's process sets them.
func TestSysctlsOfInterfaces(t *testing.T) {
	rt := shared.get(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "tuned", IPv6: true})
	c := start(t, rt, arcbox.ContainerSpec{
		Networks: []arcbox.NetworkAttachment{{Network: "tuned"}},
		Sysctls:  map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "net.ipv6.conf.all.disable_ipv6": "1"},
	})
	out, code := in(t, rt, c.ID, "cat /proc/sys/net/ipv4/conf/eth0/forwarding; ip -4 addr show eth0 | grep -c inet; ip -6 addr | wc -l")
	require.Equal(t, "1\n1\n0\n", out)
	require.Zero(t, code)
}

// TestInterfaceThatWasKeptReady looks at the interface of a container that has the spare namespace, takes it away and gives
// it another one. Of two kinds of interface the kernel gives one with IPv6 an address of its own.
func TestInterfaceThatWasKeptReady(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "six", IPv6: true})
	const show = "cat /sys/class/net/eth0/address; ip addr show eth0 | grep -o ' inet.* scope' | cut -d/ -f1; ip route | grep -c default"
	c := start(t, rt, arcbox.ContainerSpec{})
	e := c.Networks[0]
	want := fmt.Sprintf("%s\n inet %s\n1\n", e.MAC, e.IPv4)
	out, _ := in(t, rt, c.ID, show)
	require.Equal(t, want, out)
	require.NoError(t, rt.DisconnectNetwork(ctx, c.ID, arcbox.DefaultNetwork))
	out, _ = in(t, rt, c.ID, "ls /sys/class/net")
	require.Equal(t, "lo\n", out)
	require.NoError(t, rt.ConnectNetwork(ctx, c.ID, arcbox.NetworkAttachment{Network: arcbox.DefaultNetwork, IPv4: e.IPv4}))
	out, _ = in(t, rt, c.ID, show)
	require.Equal(t, want, out)

	both := start(t, rt, arcbox.ContainerSpec{Networks: []arcbox.NetworkAttachment{{Network: "six"}}})
	out, _ = in(t, rt, both.ID, "ip -6 addr show eth0 | grep -o 'inet6 f[de]' | sort; ip -6 route | grep -c default")
	require.Equal(t, "inet6 fd\ninet6 fe\n1\n", out)
}

func TestNetworkModes(t *testing.T) {
	rt := shared.get(t)
	w := start(t, rt, web("", arcbox.ContainerSpec{}))
	require.NoError(t, rt.WaitFor(testContext(t), w.ID, arcbox.ForListeningPort(80)))
	r := run(t, rt, arcbox.ContainerSpec{Network: "container:" + w.ID, Args: sh("wget -q -O - http://127.0.0.1/; ip -4 addr show eth0 | grep -o 'inet [0-9.]*'")}, arcbox.RunOptions{})
	require.Equal(t, "page of\ninet "+w.Networks[0].IPv4.String()+"\n", r.stdout)
	r = run(t, rt, arcbox.ContainerSpec{Network: arcbox.NetworkNone, Args: sh("ls /sys/class/net; cat /etc/resolv.conf")}, arcbox.RunOptions{})
	require.Equal(t, "lo\n", r.stdout)
	r = run(t, rt, arcbox.ContainerSpec{Network: arcbox.NetworkMachine, Args: sh("ls /sys/class/net")}, arcbox.RunOptions{})
	require.Contains(t, r.stdout, "nic\n")
	for _, bad := range []arcbox.ContainerSpec{
		{Network: "host"}, {Network: "container:"}, {Network: "none", Ports: []arcbox.PortMapping{{ContainerPort: 80}}},
		{Ports: []arcbox.PortMapping{{}}}, {Ports: []arcbox.PortMapping{{ContainerPort: 65535, Count: 2}}},
		{Ports: []arcbox.PortMapping{{ContainerPort: 80, Protocol: "sctp"}}},
		{Ports: []arcbox.PortMapping{{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 81, HostPort: 8080}}},
		{Networks: []arcbox.NetworkAttachment{{}}},
	} {
		bad.Image = "busybox:test"
		_, err := rt.CreateContainer(testContext(t), bad, arcbox.CreateOptions{})
		require.ErrorIs(t, err, arcbox.ErrInvalid)
	}
	_, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Networks: []arcbox.NetworkAttachment{{Network: "nowhere"}}}, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer busy.Close()
	port := uint16(busy.Addr().(*net.TCPAddr).Port)
	i, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Args: []string{"true"}, Ports: []arcbox.PortMapping{{ContainerPort: 80, HostPort: port}}}, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, rt.StartContainer(testContext(t), i.ID), arcbox.ErrConflict)
	busy.Close()
	require.NoError(t, rt.StartContainer(testContext(t), i.ID))
	require.NoError(t, rt.RemoveContainer(testContext(t), i.ID, arcbox.RemoveOptions{Force: true}))
}

// A test answers what a container asks of the outside.
func TestNetworkOfTheProgram(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	fake, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Host, r.URL.Path)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(fake) }()
	defer func() { srv.Close(); <-served }()
	flows := make(chan arcbox.NetworkFlow, 10)
	newNetwork(t, rt, arcbox.NetworkSpec{
		Name: "programmed", Services: map[uint16]string{8000: fake.Addr().String()},
		Hosts:  map[string][]netip.Addr{"api.example.com": {netip.MustParseAddr("203.0.113.1")}},
		Egress: []arcbox.EgressRule{{Host: "*.example.com", Ports: "80"}, {Deny: true}},
		Dial: func(ctx context.Context, f arcbox.NetworkFlow) (net.Conn, error) {
			flows <- f
			var d net.Dialer
			return d.DialContext(ctx, "tcp", fake.Addr().String())
		},
	})
	l, err := rt.Listen(ctx, "programmed", "service", 80)
	require.NoError(t, err)
	served2 := make(chan struct{})
	go func() { defer close(served2); _ = http.Serve(l, srv.Handler) }()
	defer func() { l.Close(); <-served2 }()
	c := start(t, rt, arcbox.ContainerSpec{Name: "app", Networks: []arcbox.NetworkAttachment{{Network: "programmed"}}})
	for url, want := range map[string]string{
		"http://api.example.com/v1": "api.example.com /v1", "http://service/x": "service /x",
		"http://" + arcbox.HostName + ":8000/y": arcbox.HostName + ":8000 /y",
	} {
		out, _ := in(t, rt, c.ID, "timeout 20 wget -q -O - "+url)
		require.Equal(t, want, out)
	}
	f := <-flows
	require.Equal(t, []string{"app", "programmed", "tcp", "203.0.113.1:80"}, []string{f.ContainerName, f.Network, f.Protocol, f.Destination.String()})
	require.Contains(t, f.Names, "api.example.com")
	for _, url := range []string{"http://203.0.113.2/", "http://169.254.169.254/", "http://api.example.com:81/"} {
		out, code := in(t, rt, c.ID, "timeout 2 wget -q -O - "+url)
		require.NotZero(t, code, "%s: %s", url, out)
	}
	require.Empty(t, flows)
	r := run(t, rt, arcbox.ContainerSpec{Networks: []arcbox.NetworkAttachment{{Network: "programmed"}}, Args: sh("ping -c 1 -W 1 " + arcbox.HostName)}, arcbox.RunOptions{})
	require.Zero(t, r.exit.Code, r.stdout+r.stderr)
	require.True(t, strings.Contains(r.stdout, "1 packets received"))
}
