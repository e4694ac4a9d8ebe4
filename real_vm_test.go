package arcbox_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// realPrograms returns a reference of an image with redis, nginx and python3, which is pulled from a registry when it is
// first asked for.
func (s *sharedRuntime) realPrograms(t *testing.T) string {
	t.Helper()
	rt := s.get(t)
	if s.programs == "" {
		img, err := imagetest.Programs(t)
		require.NoError(t, err)
		ref := imagetest.NewRegistry(t).Push(t, "programs", "test", img)
		_, err = rt.PullImage(testContext(t), ref, arcbox.PullOptions{})
		require.NoError(t, err)
		s.programs = ref
	}
	return s.programs
}

// serve starts a container and removes it after the test. The log is told where the test fails.
func serve(t *testing.T, rt *arcbox.Runtime, spec arcbox.ContainerSpec) string {
	t.Helper()
	p, err := rt.RunContainer(testContext(t), spec, arcbox.RunOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", logOf(t, rt, p.ID()))
		}
		require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{Force: true}))
		require.NoError(t, p.Close())
	})
	return p.ID()
}

func logOf(t *testing.T, rt *arcbox.Runtime, ref string) string {
	t.Helper()
	var all bytes.Buffer
	require.NoError(t, rt.CopyLogs(testContext(t), ref, &all, &all, arcbox.LogsOptions{}))
	return all.String()
}

// redisCall sends a command over a connection from Go and returns the answer's value.
func redisCall(t *testing.T, rt *arcbox.Runtime, ref, command string) string {
	t.Helper()
	conn, err := rt.Dial(testContext(t), ref, "tcp", "localhost:6379")
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "%s\r\n", command)
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	if strings.HasPrefix(line, "$") && line != "$-1\r\n" {
		line, err = r.ReadString('\n')
		require.NoError(t, err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "+")
}

// TestRedis uses a database as an application does: it is waited for, used by its own client and from Go, ended by
// signals in good and bad ways, and has its data each time.
func TestRedis(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := serve(t, rt, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), User: "redis", WorkingDir: "/var/lib/redis", Sysctls: map[string]string{"net.core.somaxconn": "512"},
		Args: []string{"redis-server", "--appendonly", "yes", "--appendfsync", "always"},
	})
	ready := arcbox.ForAll(arcbox.ForLog("Ready to accept connections", 1), arcbox.ForListeningPort(6379))
	require.NoError(t, rt.WaitFor(ctx, id, ready))
	out, err := rt.CommandContext(ctx, id, "redis-cli", "set", "color", "green").Output()
	require.NoError(t, err)
	require.Equal(t, "OK\n", string(out))
	require.Equal(t, "green", redisCall(t, rt, id, "GET color"))

	for n, end := range []struct {
		signal string
		want   arcbox.Exit
	}{{"TERM", arcbox.Exit{}}, {"INT", arcbox.Exit{}}, {"KILL", arcbox.Exit{Code: 137, Signal: "KILL"}}} {
		require.Equal(t, "OK", redisCall(t, rt, id, fmt.Sprintf("SET n %d", n)))
		if end.signal == "TERM" {
			require.NoError(t, rt.StopContainer(ctx, id, arcbox.StopOptions{}))
		} else {
			require.NoError(t, rt.KillContainer(ctx, id, end.signal))
		}
		exit, err := rt.WaitContainer(ctx, id, arcbox.WaitOptions{})
		require.NoError(t, err)
		require.Equal(t, end.want, exit, end.signal)
		require.NoError(t, rt.StartContainer(ctx, id))
		require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("Ready to accept connections", n+2), arcbox.ForListeningPort(6379)))
		require.Equal(t, fmt.Sprint(n), redisCall(t, rt, id, "GET n"), "after %s", end.signal)
	}
	require.Equal(t, "green", redisCall(t, rt, id, "GET color"))
	require.Equal(t, 2, strings.Count(logOf(t, rt, id), "bye bye"), "two ends in good order")
}

const nginxConfig = `daemon off; user www-data; worker_processes 2; pid /run/nginx.pid; error_log /dev/stderr notice;
events { worker_connections 64; }
http {
	access_log /dev/stdout;
	server { listen 80; location / { return 200 "one\n"; } location /slow { limit_rate 8k; root /srv; } %s }
}`

// writeFile puts a file into a container.
func writeFile(t *testing.T, rt *arcbox.Runtime, ref, name, text string) {
	t.Helper()
	archive := imagetest.Tar(t, imagetest.Entry{Name: strings.TrimPrefix(name, "/"), File: imagetest.File{Mode: 0o644, Data: []byte(text)}})
	require.NoError(t, rt.CopyTo(testContext(t), ref, "/", bytes.NewReader(archive), arcbox.CopyToOptions{}))
}

// TestNginx configures a web server by a copy before its first start, asks it over connections from Go, has it read
// another configuration, and lets it end when its last request is answered.
func TestNginx(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), Args: []string{"nginx", "-c", "/etc/nginx.conf"}, StopSignal: "QUIT",
		Tmpfs: []arcbox.Tmpfs{{Path: "/var/lib/nginx"}},
	}, arcbox.CreateOptions{})
	require.NoError(t, err)
	id := info.ID
	t.Cleanup(func() { require.NoError(t, rt.RemoveContainer(testContext(t), id, arcbox.RemoveOptions{Force: true})) })
	writeFile(t, rt, id, "/etc/nginx.conf", fmt.Sprintf(nginxConfig, ""))
	writeFile(t, rt, id, "/srv/slow", strings.Repeat("x", 12<<10))
	require.NoError(t, rt.StartContainer(ctx, id))
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForHTTP(80, "/", 0)), logOf(t, rt, id))
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return rt.Dial(ctx, id, network, address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	get := func(path string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
		require.NoError(t, err)
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(body)
	}
	require.Equal(t, "one\n", get("/first"))

	writeFile(t, rt, id, "/etc/nginx.conf", fmt.Sprintf(nginxConfig, `location = /new { return 203 "two\n"; }`))
	require.NoError(t, rt.KillContainer(ctx, id, "HUP"))
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForHTTP(80, "new", 203)))
	transport.CloseIdleConnections()
	for got := ""; got != "two\n"; got = get("/new") { // a worker of before may take a connection until it has read that it must go
		require.NoError(t, ctx.Err())
	}

	// A request whose answer takes two seconds, which outlives the request to end.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/slow", nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.NoError(t, rt.StopContainer(ctx, id, arcbox.StopOptions{}))
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Len(t, body, 12<<10)
	now, err := rt.InspectContainer(ctx, id)
	require.NoError(t, err)
	require.Equal(t, arcbox.Exit{}, now.Exit)
	var stdout bytes.Buffer
	require.NoError(t, rt.CopyLogs(ctx, id, &stdout, nil, arcbox.LogsOptions{}))
	require.Contains(t, stdout.String(), "GET /first HTTP/1.1")
}

// python runs a script to its end.
func python(t *testing.T, spec arcbox.ContainerSpec, script string, opts arcbox.RunOptions) result {
	t.Helper()
	spec.Image, spec.Args = shared.realPrograms(t), []string{"python3", "-S", "-c", script}
	return run(t, shared.get(t), spec, opts)
}

func TestPythonHandlesSignals(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := serve(t, rt, arcbox.ContainerSpec{Image: shared.realPrograms(t), Args: []string{"python3", "-S", "-u", "-c", `
import os, signal, sys
def got(n, frame): # another signal may come in the middle of it
    os.write(1, f"got {signal.Signals(n).name}\n".encode())
    if n == signal.SIGTERM: sys.exit(7)
for s in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGWINCH, signal.SIGRTMIN): signal.signal(s, got)
print("ready")
while True: signal.pause()
`}})
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("ready", 1)))
	for i, s := range []string{"USR1", "SIGHUP", "winch", "34"} {
		require.NoError(t, rt.KillContainer(ctx, id, s))
		require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForLog("got", i+1)))
	}
	require.NoError(t, rt.StopContainer(ctx, id, arcbox.StopOptions{}))
	exit, err := rt.WaitContainer(ctx, id, arcbox.WaitOptions{})
	require.NoError(t, err)
	require.Equal(t, arcbox.Exit{Code: 7}, exit)
	require.Equal(t, 5, strings.Count(logOf(t, rt, id), "got SIG"))
}

func TestPythonWithoutMemory(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	events := rt.Events(ctx, arcbox.EventsOptions{Kinds: []event.Kind{event.ContainerOOM}})
	got := python(t, arcbox.ContainerSpec{Name: "hungry", Resources: arcbox.Resources{Memory: 48 << 20}},
		`b = [bytearray(b"x" * (1 << 20)) for i in range(200)]; print(len(b))`, arcbox.RunOptions{})
	require.Equal(t, arcbox.Exit{Code: 137, Signal: "KILL", OOMKilled: true}, got.exit)
	require.Empty(t, got.stdout)
	require.Equal(t, "hungry", (<-events).Name)
	got = python(t, arcbox.ContainerSpec{Resources: arcbox.Resources{Memory: 48 << 20}},
		`b = [bytearray(b"x" * (1 << 20)) for i in range(10)]; print(len(b))`, arcbox.RunOptions{})
	require.Equal(t, result{stdout: "10\n"}, got)
}

func TestPythonThreads(t *testing.T) {
	const script = `
import threading
hold, n = threading.Event(), 0
try:
    for i in range(60):
        threading.Thread(target=hold.wait, daemon=True).start(); n += 1
except RuntimeError as e: print(e)
print(n); hold.set()
`
	got := python(t, arcbox.ContainerSpec{}, script, arcbox.RunOptions{})
	require.Equal(t, result{stdout: "60\n"}, got)
	got = python(t, arcbox.ContainerSpec{Resources: arcbox.Resources{PIDs: 20}}, script, arcbox.RunOptions{})
	require.Equal(t, result{stdout: "can't start new thread\n19\n"}, got)
}

func TestPythonUnderAQuota(t *testing.T) {
	const script = `
import time
end = time.process_time() + 0.1
while time.process_time() < end: pass
print(open("/sys/fs/cgroup/cpu.max").read().strip())
print(dict(l.split() for l in open("/sys/fs/cgroup/cpu.stat"))["nr_throttled"])
`
	lines := strings.Fields(python(t, arcbox.ContainerSpec{}, script, arcbox.RunOptions{}).stdout)
	require.Equal(t, []string{"max", "100000", "0"}, lines)
	got := python(t, arcbox.ContainerSpec{Resources: arcbox.Resources{CPUs: 0.2}}, script, arcbox.RunOptions{})
	lines = strings.Fields(got.stdout)
	require.Len(t, lines, 3, got.stderr)
	require.Equal(t, []string{"20000", "100000"}, lines[:2])
	require.NotEqual(t, "0", lines[2], "it had to wait for its quota")
}

func TestPythonReadsItsInput(t *testing.T) {
	got := python(t, arcbox.ContainerSpec{}, `import sys; print(sum(int(l) for l in sys.stdin)); print("end", file=sys.stderr)`,
		arcbox.RunOptions{Stdin: strings.NewReader("1\n2\n39\n")})
	require.Equal(t, result{stdout: "42\n", stderr: "end\n"}, got)
	pr, pw := io.Pipe()
	defer pw.Close()
	go func() { _, _ = io.WriteString(pw, "blue\r") }() // ends with the read, or the pipe
	got = python(t, arcbox.ContainerSpec{TTY: true}, `
import os
print(os.isatty(0), os.isatty(2), os.get_terminal_size())
print("so", input("what? "))
`, arcbox.RunOptions{Stdin: pr, Rows: 30, Cols: 90})
	require.Contains(t, got.stdout, "True True os.terminal_size(columns=90, lines=30)\r\n")
	require.Contains(t, got.stdout, "so blue\r\n")
}

func TestPythonSeesItsSurroundings(t *testing.T) {
	const script = `
import os, socket, sys
print(os.getpid(), os.getuid(), os.getgid(), sorted(os.getgroups()), socket.gethostname(), os.environ["HOME"], os.getcwd())
print([l.split()[3:5] for l in open("/proc/self/limits") if l.startswith("Max open files")])
sys.stdout.flush(); open("/dev/stdout", "w").write("by name\n")
print(sum(map(int, (os.popen("seq 1 1000").read().split()))))
pid = os.fork()
if pid == 0: os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`
	got := python(t, arcbox.ContainerSpec{
		User: "user", Groups: []string{"redis", "50"}, Hostname: "snake", WorkingDir: "/home/user",
		Ulimits: []arcbox.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}},
	}, script, arcbox.RunOptions{})
	require.Equal(t, "1 1000 1000 [50, 101, 1000] snake /home/user /home/user\n[['100', '200']]\nby name\n500500\n9\n", got.stdout, got.stderr)
}

// TestExecIntoPython looks into a running program from beside it.
func TestExecIntoPython(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := serve(t, rt, arcbox.ContainerSpec{
		Image: shared.realPrograms(t), User: "user", Args: []string{"python3", "-S", "-u", "-c", `
import socket
s = socket.socket(socket.AF_UNIX); s.bind("/tmp/s"); s.listen()
while True:
    c, _ = s.accept(); c.sendall(b"hi " + c.recv(100)); c.close()
`}})
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForCommand(0, "test", "-S", "/tmp/s")))
	const client = `
import socket, os
s = socket.socket(socket.AF_UNIX); s.connect("/tmp/s"); s.sendall(b"there"); print(s.recv(100).decode(), os.getuid(), os.environ.get("X"))
`
	cmd := rt.CommandContext(ctx, id, "python3", "-S", "-c", client)
	cmd.User, cmd.Env = "root", []string{"X=y"}
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "hi there 0 y\n", string(out))
	top, err := rt.ContainerTop(ctx, id)
	require.NoError(t, err)
	require.Len(t, top, 1, "what was executed has ended")
	require.EqualValues(t, 1000, top[0].UID)
	st, err := rt.StatPath(ctx, id, "/tmp/s")
	require.NoError(t, err)
	require.NotZero(t, st.Mode&0o777)
	r, _, err := rt.CopyFrom(ctx, id, "/tmp")
	require.NoError(t, err)
	defer r.Close()
	_, err = tar.NewReader(r).Next()
	require.NoError(t, err, "a socket does not spoil a copy")
}
