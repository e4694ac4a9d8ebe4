package arcbox_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
)

// output executes a script in a running container and returns what it wrote.
func output(t testing.TB, rt *arcbox.Runtime, ref, script string) string {
	t.Helper()
	ctx := testContext(t)
	var out bytes.Buffer
	p, err := rt.Exec(ctx, ref, arcbox.ExecSpec{Args: sh(script)}, arcbox.ExecOptions{Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit.Code, "%s", out.String())
	return strings.TrimSpace(out.String())
}

// requireAllNeeded prunes all that is not needed, which is nothing.
func requireAllNeeded(t testing.TB, rt *arcbox.Runtime) {
	t.Helper()
	p, err := rt.PruneImages(testContext(t), arcbox.PruneImagesOptions{All: true, LayerImages: true})
	require.NoError(t, err)
	require.Empty(t, p.Images)
}

// TestForkOfAMachineWithContainers saves a machine with a container that has state in memory and on disk, and goes on from
// it: in machines of the same Runtime, in another Runtime, and after everything was closed.
func TestForkOfAMachineWithContainers(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	ctx := testContext(t)
	cfg.VM.Forkable = true
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	_, err := rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{})
	require.ErrorIs(t, err, arcbox.ErrConflict, "it does not run")
	spec := arcbox.ContainerSpec{
		Name: "server", Image: "busybox:test", Tmpfs: []arcbox.Tmpfs{{Path: "/mem"}},
		Args: sh("echo one > /mem/f; echo one > /f; sync; while true; do sleep 0.1; done"),
	}
	_, err = rt.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	done := run(t, rt, arcbox.ContainerSpec{Args: sh("echo done")}, arcbox.RunOptions{})
	require.Zero(t, done.exit.Code)
	_, err = rt.Exec(ctx, "server", arcbox.ExecSpec{Args: sh("exec sleep 1000")}, arcbox.ExecOptions{})
	require.NoError(t, err)
	require.Equal(t, "one one", output(t, rt, "server", "echo $(cat /f /mem/f)"))

	events := rt.Events(ctx, arcbox.EventsOptions{Kinds: []event.Kind{event.MachineSnapshot}})
	began := time.Now()
	snap, err := rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Name: "warm"})
	require.NoError(t, err)
	t.Logf("snapshot of %d KiB in %v", snap.Size>>10, time.Since(began))
	require.Equal(t, snap.ID, eventOf(t, events, event.MachineSnapshot).ID)
	require.Equal(t, []string{"server"}, snap.Containers)
	_, err = rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Name: "warm"})
	require.ErrorIs(t, err, arcbox.ErrExists)
	require.Equal(t, "1", output(t, rt, "server", "ps | grep -c '[s]leep 1000'"), "the parent's processes are not disturbed")
	output(t, rt, "server", "echo parent > /f; echo parent > /mem/f")

	// Children in the same Runtime, side by side, each with its own data.
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			name := fmt.Sprint("child", i)
			began := time.Now()
			_, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: name, Snapshot: "warm"})
			if err == nil {
				err = rt.StartMachine(ctx, name)
			}
			if err != nil {
				t.Error(err)
				return
			}
			t.Logf("child after %v", time.Since(began))
			c := "server-" + name
			if got := output(t, rt, c, "echo $(cat /f /mem/f)"); got != "one one" {
				t.Error(got)
			}
			if got := output(t, rt, c, "ps | grep -c '[s]leep 1000' || true"); got != "0" {
				t.Errorf("a process whose caller is not here lives in the child: %s", got)
			}
			output(t, rt, c, "echo "+name+" > /f; echo "+name+" > /mem/f; sync")
			if got := output(t, rt, c, "echo $(cat /f /mem/f)"); got != name+" "+name {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	require.Equal(t, "parent parent", output(t, rt, "server", "echo $(cat /f /mem/f)"))
	seen := map[string]bool{}
	for _, c := range []string{"server", "server-child0", "server-child1", "server-child2"} {
		uuid := output(t, rt, c, "cat /proc/sys/kernel/random/uuid")
		require.False(t, seen[uuid], "two machines have the same randomness")
		seen[uuid] = true
	}
	// A child's container is one like others, and a child boots later like others.
	require.NoError(t, rt.StopContainer(ctx, "server-child1", arcbox.StopOptions{Timeout: new(time.Duration)}))
	require.NoError(t, rt.StartContainer(ctx, "server-child1"))
	require.NoError(t, rt.StopMachine(ctx, "child0"))
	require.NoError(t, rt.RemoveSnapshot(ctx, "warm"))
	require.NoError(t, rt.StartMachine(ctx, "child0"))
	spec = arcbox.ContainerSpec{Machine: "child0", Image: "busybox:test", Args: sh("true")}
	require.Zero(t, run(t, rt, spec, arcbox.RunOptions{}).exit.Code)
	require.NoError(t, rt.StartContainer(ctx, "server-child0"))
	snap, err = rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{})
	require.NoError(t, err)
	for _, c := range []string{"server", "server-child0", "server-child1", "server-child2"} {
		require.NoError(t, rt.RemoveContainer(ctx, c, arcbox.RemoveOptions{Force: true}))
	}
	require.NoError(t, rt.Close())

	// Another Runtime, on its own.
	cfg.Ephemeral, cfg.VM.Snapshot = true, snap.ID[:8]
	rt = newRuntime(t, cfg)
	requireAllNeeded(t, rt)
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	require.Equal(t, "parent parent", output(t, rt, "server", "echo $(cat /f /mem/f)"))
	require.NoError(t, rt.Close())
	entries, err := os.ReadDir(filepath.Join(cfg.DataDir, "machines"))
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{".snapshots", "child0", "child1", "child2", "default"}, names)
}

func TestSnapshotsThatCannotBe(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	_, err := rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnsupported)
	require.ErrorContains(t, err, "Forkable")
	_, err = rt.CreateMachine(ctx, arcbox.MachineSpec{Name: "x", Snapshot: "none"})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = rt.InspectMachine(ctx, "x")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	require.ErrorIs(t, rt.RemoveSnapshot(ctx, "../default"), arcbox.ErrNotFound)
	left, err := rt.ListSnapshots(ctx, arcbox.ListSnapshotsOptions{})
	require.NoError(t, err)
	require.Empty(t, left)
	cfg := testConfig(t)
	cfg.VM.Snapshot = "x"
	_, err = arcbox.New(cfg)
	require.ErrorIs(t, err, arcbox.ErrInvalid)
}
