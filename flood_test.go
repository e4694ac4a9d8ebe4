package arcbox_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// floodPython sends as fast as it can what a container with NET_RAW can send: frames of all kinds to everybody and nobody,
// connections that are never made, packets to ever other ports, questions to the DNS.
const floodPython = `
import os, socket, random, struct, sys
gw = sys.argv[1]
def raw():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0)); me = s.getsockname()[4]
    mine = socket.inet_aton([a for a in os.popen("ip -4 addr show eth0").read().split() if a.count(".") == 3 and "/" in a][0].split("/")[0])
    arp = lambda ip: struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, me, mine, b"\0" * 6, ip)
    ip = lambda proto, to, body: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, proto, 0, mine, to) + body
    while True:
        for dst in (b"\xff" * 6, b"\x33\x33\0\0\0\1", b"\1\0\x5e\0\0\xfb", b"\2\x42" + os.urandom(4)):
            for kind, body in ((0x806, arp(os.urandom(4))), (0x800, ip(17, b"\xff" * 4, os.urandom(1400))), (0x800, ip(6, os.urandom(4), os.urandom(20))),
                               (0x86dd, os.urandom(60)), (0x8100, os.urandom(60)), (0x800, os.urandom(9))):
                try: s.send(dst + me + struct.pack("!H", kind) + body)
                except OSError: pass
def syn():
    while True:
        l = []
        for i in range(200):
            c = socket.socket(); c.setblocking(False)
            try: c.connect(("203.0.113.%d" % random.randrange(255), random.randrange(1, 65536)))
            except OSError: pass
            l.append(c)
        for c in l: c.close()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); q = os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0\4none\7example\0\0\1\0\1"
    while True:
        for to in ((gw, 53, q), (gw, random.randrange(1, 65536), b"x"), ("203.0.113.%d" % random.randrange(255), random.randrange(1, 65536), b"x" * 8000)):
            try: s.sendto(to[2], to[:2])
            except OSError: pass
for f in (raw, syn, udp):
    if os.fork() == 0: f()
print("flooding", flush=True)
os.wait()
`

// TestFlood has a container that sends all it can, while the others of its network, in its machine and in the program, go on.
// When it ends nothing of it is left.
func TestFlood(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	n := newNetwork(t, rt, arcbox.NetworkSpec{Name: "flooded", IPv6: true, Hosts: map[string][]netip.Addr{"none.example": {netip.MustParseAddr("203.0.113.1")}}})
	on := []arcbox.NetworkAttachment{{Network: "flooded"}}
	w := start(t, rt, web("dry", arcbox.ContainerSpec{Networks: on, Ports: []arcbox.PortMapping{{ContainerPort: 80}}}))
	require.NoError(t, rt.WaitFor(ctx, w.ID, arcbox.ForListeningPort(80)))
	client := start(t, rt, arcbox.ContainerSpec{Networks: on})
	before := openFiles(t)
	id := serve(t, rt, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), Networks: on, CapAdd: []string{"NET_RAW"}, Resources: arcbox.Resources{CPUs: 0.5},
		Args: []string{"python3", "-S", "-c", floodPython, n.Spec.Gateway.String()},
	})
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("flooding", 1)))
	published := fmt.Sprintf("http://127.0.0.1:%d/", w.Ports[0].HostPort)
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	for range 5 {
		require.Equal(t, "page of dry\n", get(t, hc, published))
		out, code := in(t, rt, client.ID, "timeout 60 wget -q -O - http://dry/")
		require.Zero(t, code, out)
		conn, err := rt.Dial(ctx, w.ID, "tcp", ":80")
		require.NoError(t, err)
		conn.Close()
	}
	t.Log("files of the flood:", openFiles(t)-before)
	require.Less(t, openFiles(t)-before, 4500, "a container may have 4096 flows")
	require.NoError(t, rt.KillContainer(ctx, id, "KILL"))
	_, err := rt.WaitContainer(ctx, id, arcbox.WaitOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return openFiles(t) <= before+5 }, testTimeout, 50*time.Millisecond)
}

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(all)
}
