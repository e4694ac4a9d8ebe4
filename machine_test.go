package arcbox_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
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
	require.NoError(t, rt.Close())

	rt = newRuntime(t, cfg)
	require.Contains(t, again(t, rt, "c"), "2\n", "what it wrote before")
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
	spec := arcbox.MachineExecSpec{Image: "busybox:test", Args: sh("read line; echo $line")}
	in, typed := io.Pipe()
	var out bytes.Buffer
	p, err := rt.ExecMachine(ctx, arcbox.DefaultMachine, spec, arcbox.RunOptions{Stdin: in, Stdout: &out})
	require.NoError(t, err)
	_, err = io.WriteString(typed, "still here\n")
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, typed.Close())
	require.Equal(t, "still here\n", out.String())
	eventOf(t, events, event.MachineStopped)
}
