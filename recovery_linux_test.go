package arcbox_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
)

// processOf returns the number of the QEMU process of a machine of this program, which was started by QEMU's command line or
// from an image.
func processOf(t *testing.T, name string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), "\x00guest="+name+",") && !strings.Contains(string(b), ".qemu\x00"+name+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		require.NoError(t, err)
		return pid
	}
	require.Fail(t, "no process", "machine %s", name)
	return 0
}

// TestMachineThatCrashesIsRecovered kills QEMU, makes the guest's kernel panic, and silences the agent: each is noticed,
// published and mended, the container with a restart policy comes back, and the other one has exited with the reason.
func TestMachineThatCrashesIsRecovered(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	cfg.Lifecycle.Recovery = arcbox.RecoveryPolicy{Backoff: time.Millisecond}
	cfg.Lifecycle.HealthInterval, cfg.Lifecycle.HealthTimeout = 100*time.Millisecond, 3*time.Second
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	ctx := testContext(t)
	name := "crash" + strconv.Itoa(os.Getpid())
	_, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: name})
	require.NoError(t, err)
	always := arcbox.ContainerSpec{Name: "always", Machine: name, Image: "busybox:test", Args: sh("sleep 1000"), Privileged: true}
	always.Restart.Name = arcbox.RestartAlways
	sock := filepath.Join(t.TempDir(), "s")
	once := web("once", arcbox.ContainerSpec{
		Machine: name, Image: "busybox:test", Ports: []arcbox.PortMapping{{ContainerPort: 80}},
		Sockets: []arcbox.SocketMapping{{HostPath: sock, ContainerPath: "/none"}},
	})
	for _, spec := range []arcbox.ContainerSpec{always, once} {
		_, err = rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
		require.NoError(t, err)
	}
	require.NoError(t, rt.StartContainer(ctx, "always"))
	for _, crash := range []struct {
		what   string
		reason string
		do     func()
	}{
		{"QEMU is killed", "signal: killed", func() { require.NoError(t, syscall.Kill(processOf(t, name), syscall.SIGKILL)) }},
		{"the kernel panics", "panicked", func() {
			_, _ = rt.Exec(ctx, "always", arcbox.ExecSpec{Args: sh("echo c > /proc/sysrq-trigger")}, arcbox.ExecOptions{})
		}},
		{"the agent is silent", "has not answered", func() { require.NoError(t, syscall.Kill(processOf(t, name), syscall.SIGSTOP)) }},
	} {
		require.NoError(t, rt.StartContainer(ctx, "once"), crash.what)
		events := rt.Events(ctx, arcbox.EventsOptions{})
		held := published(t, rt, "once", sock)
		crash.do()
		e := eventOf(t, events, event.MachineCrashed)
		require.Contains(t, e.Attributes[event.AttrError], crash.reason)
		require.NotEmpty(t, e.Attributes[event.AttrRetryIn])
		eventOf(t, events, event.MachineReady)
		require.Equal(t, "always", eventOf(t, events, event.ContainerStarted).Name)
		info, err := rt.InspectContainer(ctx, "once")
		require.NoError(t, err)
		require.Equal(t, arcbox.ContainerExited, info.State)
		require.Contains(t, info.Reason, crash.reason)
		require.Empty(t, info.Ports)
		require.NoError(t, held.SetReadDeadline(time.Now().Add(testTimeout)))
		_, err = held.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		_, err = net.Dial("tcp", held.RemoteAddr().String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.NoFileExists(t, sock)
	}
	info, err := rt.InspectMachine(ctx, name)
	require.NoError(t, err)
	require.Equal(t, 3, info.Restarts)
}

// published returns a connection to the port that a container publishes, once its server has it. It wants the socket of the
// host to be there as well.
func published(t *testing.T, rt *arcbox.Runtime, ref, sock string) net.Conn {
	t.Helper()
	require.NoError(t, rt.WaitFor(testContext(t), ref, arcbox.ForHTTP(80, "/", 0)))
	info, err := rt.InspectContainer(testContext(t), ref)
	require.NoError(t, err)
	require.Len(t, info.Ports, 1)
	require.FileExists(t, sock)
	c, err := net.Dial("tcp", netip.AddrPortFrom(info.Ports[0].HostIP, info.Ports[0].HostPort).String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n") // which it waits for the end of
	require.NoError(t, err)
	return c
}

// residentMemory returns how much memory of the host a process takes, in bytes.
func residentMemory(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			require.NoError(t, err)
			return kib << 10
		}
	}
	require.Fail(t, "no VmRSS")
	return 0
}

// TestMemoryComesBack lets a container fill the memory of a machine and go: the host has it again.
func TestMemoryComesBack(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	ctx := testContext(t)
	name := "gives" + strconv.Itoa(os.Getpid())
	_, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: name, ReturnMemory: true, Forkable: true})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	_, err = rt.CreateMachine(ctx, arcbox.MachineSpec{Name: name, ReturnMemory: true})
	require.NoError(t, err)
	const size = 200 << 20
	_, err = rt.RunContainer(ctx, arcbox.ContainerSpec{
		Name: "big", Machine: name, Image: "busybox:test", Tmpfs: []arcbox.Tmpfs{{Path: "/mem", Size: 256 << 20}}, Args: sh("sleep 1000"),
	}, arcbox.RunOptions{})
	require.NoError(t, err)
	before := residentMemory(t, processOf(t, name))
	output(t, rt, "big", "head -c "+strconv.Itoa(size)+" /dev/zero > /mem/f")
	full := residentMemory(t, processOf(t, name))
	require.Greater(t, full, before+size*9/10)
	require.NoError(t, rt.RemoveContainer(ctx, "big", arcbox.RemoveOptions{Force: true}))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for residentMemory(t, processOf(t, name)) > full-size*8/10 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			require.Fail(t, "the memory does not come back", "%d MiB, %d before", residentMemory(t, processOf(t, name))>>20, before>>20)
		}
	}
	t.Logf("before %d MiB, full %d MiB, after %d MiB", before>>20, full>>20, residentMemory(t, processOf(t, name))>>20)
}
