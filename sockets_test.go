package arcbox_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// answering serves connections of l: each is read to its end and answered with the digest of what came and the same bytes.
func answering(t *testing.T, l net.Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err == nil {
					fmt.Fprintf(c, "%x\n", md5.Sum(b))
					_, _ = c.Write(b)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

func listenUnix(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	return l
}

// askPython is a client in a container: n connections to a path are open at once, each sends so many bytes, ends its
// direction and checks the answer.
const askPython = `
import socket, sys, hashlib, threading
def ask(path, n, size):
    socks = []
    for i in range(n):
        s = socket.socket(socket.AF_UNIX); s.connect(path); socks.append(s)
    for i, s in enumerate(socks):
        data = bytes([i % 251]) * size
        def send(s=s, data=data): s.sendall(data); s.shutdown(socket.SHUT_WR)
        t = threading.Thread(target=send); t.start()
        with s.makefile("rb") as f:
            assert f.readline().decode().strip() == hashlib.md5(data).hexdigest()
            assert f.read() == data
        t.join(); s.close()
`

// TestSocketMounts lets a container use a socket of the host, and a function of the program as one.
func TestSocketMounts(t *testing.T) {
	rt := shared.get(t)
	l, tcp := listenUnix(t), listenTCP(t)
	answering(t, l)
	answering(t, tcp)
	var d net.Dialer
	at := func(target string, m arcbox.Mount) arcbox.Mount { m.Target = target; return m }
	spec := arcbox.ContainerSpec{User: "user", Mounts: []arcbox.Mount{
		at("/run/host.sock", arcbox.Mount{Type: arcbox.MountSocket, Source: l.Addr().String()}),
		at("/run/bound.sock", arcbox.Mount{Type: arcbox.MountBind, Source: l.Addr().String(), ReadOnly: true}),
		at("/run/func.sock", arcbox.Mount{Type: arcbox.MountSocket, Dial: func(ctx context.Context) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", tcp.Addr().String())
		}}),
		at("/run/none.sock", arcbox.Mount{Type: arcbox.MountSocket, Dial: func(context.Context) (net.Conn, error) {
			return nil, io.EOF
		}}),
	}}
	got := python(t, spec, askPython+`
ask("/run/host.sock", 100, 1000); ask("/run/host.sock", 1, 4 << 20)
ask("/run/bound.sock", 1, 10); ask("/run/func.sock", 3, 100000)
s = socket.socket(socket.AF_UNIX); s.connect("/run/none.sock"); assert s.recv(1) == b""
print("done")
`, arcbox.RunOptions{})
	require.Equal(t, result{stdout: "done\n"}, got)

	info, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Mounts: spec.Mounts}, arcbox.CreateOptions{})
	require.NoError(t, err)
	_, err = json.Marshal(info)
	require.NoError(t, err, "who shows what a container is need not know of functions")
	require.NoError(t, rt.RemoveContainer(testContext(t), info.ID, arcbox.RemoveOptions{}))
	for name, bad := range map[string]arcbox.Mount{
		"neither":  {Type: arcbox.MountSocket, Target: "/x"},
		"both":     {Type: arcbox.MountSocket, Target: "/x", Source: l.Addr().String(), Dial: func(context.Context) (net.Conn, error) { return nil, nil }},
		"missing":  {Type: arcbox.MountSocket, Target: "/x", Source: "/nonexistent/s"},
		"relative": {Type: arcbox.MountSocket, Target: "/x", Source: "s"},
		"a file":   {Type: arcbox.MountSocket, Target: "/x", Source: "/etc/passwd"},
		"type":     {Type: arcbox.MountVolume, Target: "/x", Dial: func(context.Context) (net.Conn, error) { return nil, nil }},
		"target":   {Type: arcbox.MountSocket, Target: "x", Source: l.Addr().String()},
	} {
		_, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Mounts: []arcbox.Mount{bad}}, arcbox.CreateOptions{})
		require.ErrorIs(t, err, arcbox.ErrInvalid, name)
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// TestSocketMountEndsWithTheContainer holds a connection to the host's socket, whose other end never closes by itself.
func TestSocketMountEndsWithTheContainer(t *testing.T) {
	rt := shared.get(t)
	l := listenUnix(t)
	defer l.Close()
	id := serve(t, rt, arcbox.ContainerSpec{
		Image:  shared.realPrograms(t),
		Mounts: []arcbox.Mount{{Type: arcbox.MountSocket, Source: l.Addr().String(), Target: "/run/host.sock"}},
		Args: []string{"python3", "-S", "-c", `
import socket, time
s = socket.socket(socket.AF_UNIX); s.connect("/run/host.sock"); s.sendall(b"hello\n")
h = socket.socket(socket.AF_UNIX); h.connect("/run/host.sock"); h.sendall(b"half\n"); h.shutdown(socket.SHUT_WR)
time.sleep(1000)`},
	})
	var conns []net.Conn
	var lines []string
	for range 2 {
		c, err := l.Accept()
		require.NoError(t, err)
		defer c.Close()
		line, err := bufio.NewReader(c).ReadString('\n')
		require.NoError(t, err)
		conns, lines = append(conns, c), append(lines, line)
	}
	require.ElementsMatch(t, []string{"hello\n", "half\n"}, lines)
	require.NoError(t, rt.KillContainer(testContext(t), id, "KILL"))
	for _, c := range conns {
		require.Eventually(t, func() bool { // the write that finds out
			_, err := c.Write([]byte("x"))
			return err != nil
		}, testTimeout, 10*time.Millisecond)
	}
}

// TestDialUnix reaches the sockets that a container has made, from the program and by a socket of the host.
func TestDialUnix(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "new")
	host := filepath.Join(dir, "s.sock")
	id := serve(t, rt, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), Sockets: []arcbox.SocketMapping{{HostPath: host, ContainerPath: "/srv/s"}},
		Args: []string{"python3", "-S", "-u", "-c", `
import socket, os, threading
def serve(s):
    while True:
        c, _ = s.accept(); threading.Thread(target=echo, args=(c,)).start()
def echo(c):
    while True:
        b = c.recv(65536)
        if not b: break
        c.sendall(b)
    c.sendall(b"end"); c.close()
os.makedirs("/srv/deep/er"); os.symlink("../../../../../../srv/s", "/srv/deep/er/link"); os.symlink("/proc/1/root/srv/s", "/srv/magic")
a = socket.socket(socket.AF_UNIX); a.bind("\0name"); a.listen(200); threading.Thread(target=serve, args=(a,)).start()
d = socket.socket(socket.AF_UNIX); d.bind("/srv/dead"); d.listen(); d.close()
s = socket.socket(socket.AF_UNIX); s.bind("/srv/s"); s.listen(200); print("ready"); serve(s)`},
	})
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("ready", 1)))
	dial := func(at string) (net.Conn, error) { return rt.Dial(ctx, id, "unix", at) }
	published := func(string) (net.Conn, error) { return net.Dial("unix", host) }
	for name, open := range map[string]func(string) (net.Conn, error){"/srv/s": dial, "/srv/deep/er/link": dial, "@name": dial, "host": published} {
		conns := make([]net.Conn, 25)
		for i := range conns {
			var err error
			conns[i], err = open(name)
			require.NoError(t, err, name)
			defer conns[i].Close()
		}
		for i, c := range conns {
			size := 1000
			if i == 0 {
				size = 1 << 20
			}
			sent := bytes.Repeat([]byte{byte(i)}, size)
			go func() { // ends with the connection
				_, _ = c.Write(sent)
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(append(sent, "end"...), got), name)
		}
	}
	for at, want := range map[string]error{
		"/srv/none": arcbox.ErrNotFound, "/etc/passwd": arcbox.ErrInvalid, "/srv": arcbox.ErrInvalid, "relative": arcbox.ErrInvalid, "": arcbox.ErrInvalid,
		"@": arcbox.ErrInvalid, "/a\x00b": arcbox.ErrInvalid, "/" + string(bytes.Repeat([]byte("x"), 5000)): arcbox.ErrInvalid,
		"/srv/dead": arcbox.ErrUnavailable, "@none": arcbox.ErrUnavailable, "/srv/magic": arcbox.ErrInvalid,
	} {
		_, err := dial(at)
		require.ErrorIs(t, err, want, "%.20s", at)
	}

	st, err := os.Stat(host)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	st, err = os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	held, err := published("")
	require.NoError(t, err)
	defer held.Close()
	inside, err := dial("/srv/s")
	require.NoError(t, err)
	defer inside.Close()
	taken, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{
		Image: "busybox:test", Args: []string{"true"}, Sockets: []arcbox.SocketMapping{{HostPath: host, ContainerPath: "/x"}},
	}, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, rt.StartContainer(ctx, taken.ID), arcbox.ErrConflict)
	require.NoError(t, rt.RemoveContainer(ctx, taken.ID, arcbox.RemoveOptions{}))
	require.NoError(t, rt.KillContainer(ctx, id, "KILL"))
	_, err = rt.WaitContainer(ctx, id, arcbox.WaitOptions{})
	require.NoError(t, err)
	for _, c := range []net.Conn{held, inside} {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(testTimeout)))
		_, err = io.ReadAll(c)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	_, err = os.Stat(host)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = dial("/srv/s")
	require.ErrorIs(t, err, arcbox.ErrConflict)
}
