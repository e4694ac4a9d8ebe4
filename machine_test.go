package arcbox_test

import (
	"bytes"
	"context"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
)

// eventOf waits for an event of the kind on a channel of events.
func eventOf(t *testing.T, events <-chan event.Event, kind event.Kind) event.Event {
	t.Helper()
	ctx := testContext(t)
	for {
		select {
		case e, ok := <-events:
			require.True(t, ok, "no %s came", kind)
			if e.Kind == kind {
				return e
			}
		case <-ctx.Done():
			require.Fail(t, "no event came", "%s", kind)
		}
	}
}

// TestNamedMachines makes a machine, runs a container in it, pauses, stops and changes it, and finds it again in another
// Runtime.
func TestNamedMachines(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	ctx := testContext(t)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	info, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: "lab", CPUs: 1, Labels: map[string]string{"for": "test"}})
	require.NoError(t, err)
	require.Equal(t, arcbox.MachineStopped, info.State)
	require.EqualValues(t, 512<<20, info.Memory)
	_, err = rt.CreateContainer(ctx, arcbox.ContainerSpec{Name: "c", Machine: "none", Image: "busybox:test"}, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)

	spec := arcbox.ContainerSpec{Name: "c", Machine: "lab", Image: "busybox:test", Args: sh("echo x >> /f; grep -c x /f; uname -n")}
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	c, err := rt.InspectContainer(ctx, "c")
	require.NoError(t, err)
	require.Equal(t, "lab", c.Machine)
	def, err := rt.InspectMachine(ctx, arcbox.DefaultMachine)
	require.NoError(t, err)
	require.Equal(t, arcbox.MachineStopped, def.State, "nobody needed it")
	info, err = rt.InspectMachine(ctx, "lab")
	require.NoError(t, err)
	require.Equal(t, arcbox.MachineRunning, info.State)
	require.Equal(t, 1, info.Containers)
	require.NotEmpty(t, info.Kernel)

	require.NoError(t, rt.PauseMachine(ctx, "lab"))
	require.ErrorIs(t, rt.StartContainer(ctx, "c"), arcbox.ErrConflict)
	require.NoError(t, rt.ResumeMachine(ctx, "lab"))
	_, err = rt.MachineConsole(ctx, "lab")
	require.NoError(t, err)
	conn, err := rt.DialMachine(ctx, "lab", 1024)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.ErrorIs(t, rt.RemoveMachine(ctx, "lab", arcbox.RemoveMachineOptions{}), arcbox.ErrConflict)
	require.NoError(t, rt.StopMachine(ctx, "lab"))
	_, err = rt.MachineConsole(ctx, "lab")
	require.ErrorIs(t, err, arcbox.ErrConflict)
	require.ErrorIs(t, rt.RemoveMachine(ctx, "lab", arcbox.RemoveMachineOptions{}), arcbox.ErrInUse)
	info, err = rt.UpdateMachine(ctx, "lab", arcbox.UpdateMachineOptions{CPUs: 2, Memory: 384 << 20})
	require.NoError(t, err)
	require.Equal(t, 2, info.CPUs)
	require.NoError(t, rt.Close())

	rt = newRuntime(t, cfg)
	require.Contains(t, again(t, rt, "c"), "2\n", "what it wrote before")
	var shape bytes.Buffer
	look := arcbox.MachineExecSpec{Image: "busybox:test", Args: sh("nproc; free -m | awk '/Mem/ {print ($2 < 384 && $2 > 256)}'")}
	p, err = rt.ExecMachine(ctx, "lab", look, arcbox.RunOptions{Stdout: &shape})
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, "2\n1\n", shape.String(), "as it was updated")
	require.NoError(t, rt.RemoveMachine(ctx, "lab", arcbox.RemoveMachineOptions{Force: true}))
	_, err = rt.InspectContainer(ctx, "c")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = os.Stat(filepath.Join(cfg.DataDir, "machines", "lab"))
	require.ErrorIs(t, err, os.ErrNotExist)
	list, err := rt.ListMachines(ctx, arcbox.ListMachinesOptions{})
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, arcbox.DefaultMachine, list[0].Name)
}

// TestHoldsKeepMachines lets a machine be idle, which stops it, and holds it, which does not.
func TestHoldsKeepMachines(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	cfg.Lifecycle.IdleTimeout = 1
	rt := newRuntime(t, cfg)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	events := rt.Events(ctx, arcbox.EventsOptions{Kinds: []event.Kind{event.MachineStopped}})
	release, err := rt.HoldMachine(ctx, arcbox.DefaultMachine)
	require.NoError(t, err)
	info, err := rt.InspectMachine(ctx, arcbox.DefaultMachine)
	require.NoError(t, err)
	require.Equal(t, arcbox.MachineRunning, info.State)
	release()
	release()
	eventOf(t, events, event.MachineStopped)

	loadBusybox(t, rt)
	spec := arcbox.ContainerSpec{Image: "busybox:test", Args: sh("head -c 4000000 /dev/zero > /zeros; echo one; echo two"), Name: "done"}
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	eventOf(t, events, event.MachineStopped)
	for what, busy := range map[string]func(*testing.T, *arcbox.Runtime) (end func()){
		"a hold": holding, "a dial": dialed, "an exec in a machine": typing, "a reader of logs": readingLogs, "a copy": copying,
	} {
		t.Run(what, func(t *testing.T) {
			end := busy(t, rt)
			release, err := rt.HoldMachine(ctx, arcbox.DefaultMachine)
			require.NoError(t, err)
			info, err := rt.InspectMachine(ctx, arcbox.DefaultMachine)
			require.NoError(t, err)
			release() // which would stop it
			end()
			eventOf(t, events, event.MachineStopped)
			again, err := rt.InspectMachine(ctx, arcbox.DefaultMachine)
			require.NoError(t, err)
			require.Equal(t, info.Started, again.Started, "it was not stopped meanwhile")
		})
	}
}

func holding(t *testing.T, rt *arcbox.Runtime) (end func()) {
	release, err := rt.HoldMachine(testContext(t), arcbox.DefaultMachine)
	require.NoError(t, err)
	return release
}

// dialed opens a connection to the agent of the default machine, which answers when the end comes.
func dialed(t *testing.T, rt *arcbox.Runtime) (end func()) {
	ctx := testContext(t)
	conn, err := rt.DialMachine(ctx, arcbox.DefaultMachine, api.Port)
	require.NoError(t, err)
	return func() {
		rep, err := agent.New(func(context.Context) (net.Conn, error) { return conn, nil }).Ping(ctx)
		require.NoError(t, err)
		require.NotEmpty(t, rep.Kernel)
	}
}

// typing executes a command in the default machine, which reads its input when the end comes.
func typing(t *testing.T, rt *arcbox.Runtime) (end func()) {
	ctx := testContext(t)
	in, typed := io.Pipe()
	var out bytes.Buffer
	p, err := rt.ExecMachine(ctx, arcbox.DefaultMachine, arcbox.MachineExecSpec{Image: "busybox:test", Args: sh("read line; echo $line")},
		arcbox.RunOptions{Stdin: in, Stdout: &out})
	require.NoError(t, err)
	return func() {
		_, err = io.WriteString(typed, "still here\n")
		require.NoError(t, err)
		require.NoError(t, typed.Close())
		_, err = p.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, "still here\n", out.String())
	}
}

// readingLogs reads the first line of a log, and the others when the end comes.
func readingLogs(t *testing.T, rt *arcbox.Runtime) (end func()) {
	next, stop := iter.Pull2(rt.ContainerLogs(testContext(t), "done", arcbox.LogsOptions{}))
	e, err, ok := next()
	require.True(t, ok)
	require.NoError(t, err)
	require.Equal(t, "one\n", string(e.Line))
	return func() {
		e, err, ok := next()
		require.True(t, ok)
		require.NoError(t, err)
		require.Equal(t, "two\n", string(e.Line))
		stop()
	}
}

// copying copies a large file from a container, whose reader reads when the end comes.
func copying(t *testing.T, rt *arcbox.Runtime) (end func()) {
	r, err := rt.ExportContainer(testContext(t), "done")
	require.NoError(t, err)
	return func() {
		n, err := io.Copy(io.Discard, r)
		require.NoError(t, err)
		require.Greater(t, n, int64(4000000))
		require.NoError(t, r.Close())
	}
}
