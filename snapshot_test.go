package arcbox_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
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

// fetch gets a file from a server by the published port of its container.
func fetch(t testing.TB, rt *arcbox.Runtime, ref, path string) string {
	t.Helper()
	i, err := rt.InspectContainer(testContext(t), ref)
	require.NoError(t, err)
	require.Len(t, i.Ports, 1)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://%s%s", netip.AddrPortFrom(i.Ports[0].HostIP, i.Ports[0].HostPort), path))
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// requireAllNeeded prunes all that is not needed, which is nothing.
func requireAllNeeded(t testing.TB, rt *arcbox.Runtime) {
	t.Helper()
	p, err := rt.PruneImages(testContext(t), arcbox.PruneImagesOptions{All: true, LayerImages: true})
	require.NoError(t, err)
	require.Empty(t, p.Images)
}

// ask fetches a file from the server that containers call "server".
const ask = "timeout 60 wget -q -O - http://server/f"

// startShop starts a server, with state in memory, on disk and in a volume, and a client that knows it by name and has a
// directory of the host.
func startShop(t testing.TB, rt *arcbox.Runtime) {
	t.Helper()
	ctx := testContext(t)
	_, err := rt.CreateNetwork(ctx, arcbox.NetworkSpec{Name: "shop", Subnet: netip.MustParsePrefix("10.77.0.0/24"), Internal: true})
	require.NoError(t, err)
	shop := []arcbox.NetworkAttachment{{Network: "shop"}}
	spec := arcbox.ContainerSpec{
		Name: "server", Image: "busybox:test", Tmpfs: []arcbox.Tmpfs{{Path: "/mem"}}, Networks: shop,
		Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Source: "data", Target: "/data"}}, Ports: []arcbox.PortMapping{{ContainerPort: 80}},
		Args: sh("echo one > /mem/f; echo one > /f; echo one > /data/f; sync; httpd -p 80 -h /data; while true; do sleep 0.1; done"),
	}
	_, err = rt.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), []byte("of the host\n"), 0o644))
	spec = arcbox.ContainerSpec{Name: "client", Image: "busybox:test", Networks: shop, Args: sh("exec sleep 1000"), Labels: map[string]string{"from": "parent"}, Mounts: onHost(dir)}
	_, err = rt.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	require.NoError(t, rt.WaitFor(ctx, "server", arcbox.ForListeningPort(80)))
	require.Equal(t, "one", output(t, rt, "client", ask))
	require.Equal(t, "of the host", output(t, rt, "client", "cat /s/f"))
}

// changeChild finds what the shop had in a fork of its machine, and changes it there.
func changeChild(t testing.TB, rt *arcbox.Runtime, name string) {
	c := "server-" + name
	if got := output(t, rt, c, "echo $(cat /f /mem/f)"); got != "one one" {
		t.Error(got)
	}
	if got := output(t, rt, c, "ps | grep -c '[s]leep 1000' || true"); got != "0" {
		t.Errorf("a process whose caller is not here lives in the child: %s", got)
	}
	if got := output(t, rt, "client-"+name, ask); got != "one" {
		t.Errorf("by name, in the child: %s", got)
	}
	if got := output(t, rt, "client-"+name, "cat /s/f 2>/dev/null || echo error"); got != "error" {
		t.Errorf("the parent's share, in the child: %s", got)
	}
	output(t, rt, c, "echo "+name+" > /f; echo "+name+" > /mem/f; echo "+name+" > /data/f; sync")
	if got := output(t, rt, c, "echo $(cat /f /mem/f)"); got != name+" "+name {
		t.Error(got)
	}
	if got := output(t, rt, "client-"+name, ask); got != name {
		t.Errorf("by name, in the child: %s", got)
	}
	if got := fetch(t, rt, c, "/f"); got != name {
		t.Errorf("through the child's published port: %s", got)
	}
}

// forkOfAnotherRuntime goes on from a snapshot of the shop as the default machine of another Runtime.
func forkOfAnotherRuntime(t testing.TB, cfg arcbox.Config, snapshot string) {
	t.Helper()
	ctx := testContext(t)
	cfg.Ephemeral, cfg.VM.Snapshot = true, snapshot[:8]
	rt := newRuntime(t, cfg)
	requireAllNeeded(t, rt)
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	require.Equal(t, "parent parent", output(t, rt, "server", "echo $(cat /f /mem/f)"))
	require.Equal(t, "parent", output(t, rt, "client", ask))
	volumes, err := rt.ListVolumes(ctx, arcbox.ListVolumesOptions{})
	require.NoError(t, err)
	require.Len(t, volumes, 1)
	require.Equal(t, []string{"server"}, volumes[0].UsedBy)
	v, err := rt.InspectVolume(ctx, "data", arcbox.InspectVolumeOptions{Usage: true})
	require.NoError(t, err)
	require.EqualValues(t, 1, v.Usage.Files)
	require.NoError(t, rt.Close())
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
	startShop(t, rt)
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
	require.ElementsMatch(t, []string{"server", "client"}, snap.Containers)
	_, err = rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Name: "warm"})
	require.ErrorIs(t, err, arcbox.ErrExists)
	require.Equal(t, "1", output(t, rt, "server", "ps | grep -c '[s]leep 1000'"), "the parent's processes are not disturbed")
	output(t, rt, "server", "echo parent > /f; echo parent > /mem/f; echo parent > /data/f")

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
			changeChild(t, rt, name)
		})
	}
	wg.Wait()
	require.Equal(t, "parent parent", output(t, rt, "server", "echo $(cat /f /mem/f)"))
	require.Equal(t, "parent", output(t, rt, "client", ask))
	require.Equal(t, "parent", fetch(t, rt, "server", "/f"))
	output(t, rt, "server-child0", "echo more > /data/more; sync")
	for machine, files := range map[string]int64{arcbox.DefaultMachine: 1, "child0": 2} {
		v, err := rt.InspectVolume(ctx, "data", arcbox.InspectVolumeOptions{Usage: true, Machine: machine})
		require.NoError(t, err)
		require.Equal(t, files, v.Usage.Files, machine)
	}
	n, err := rt.InspectNetwork(ctx, "shop-child0")
	require.NoError(t, err)
	require.Len(t, n.Members, 2)
	require.True(t, n.Spec.Internal)
	seen := map[string]bool{}
	for _, c := range []string{"server", "server-child0", "server-child1", "server-child2"} {
		uuid := output(t, rt, c, "cat /proc/sys/kernel/random/uuid")
		require.False(t, seen[uuid], "two machines have the same randomness")
		seen[uuid] = true
	}
	// A child's container is one like others, and a child boots later like others.
	require.NoError(t, rt.StopContainer(ctx, "server-child1", arcbox.StopOptions{Timeout: new(time.Duration)}))
	require.NoError(t, rt.StartContainer(ctx, "server-child1"))
	require.NoError(t, rt.RestartContainer(ctx, "client-child1", arcbox.StopOptions{Timeout: new(time.Duration)}))
	require.Equal(t, "of the host", output(t, rt, "client-child1", "cat /s/f"), "the child has a share of its own by then")
	require.NoError(t, rt.StopMachine(ctx, "child0"))
	require.NoError(t, rt.RemoveSnapshot(ctx, "warm"))
	require.NoError(t, rt.StartMachine(ctx, "child0"))
	spec := arcbox.ContainerSpec{Machine: "child0", Image: "busybox:test", Args: sh("true")}
	require.Zero(t, run(t, rt, spec, arcbox.RunOptions{}).exit.Code)
	require.NoError(t, rt.StartContainer(ctx, "server-child0"))
	require.NoError(t, rt.StartContainer(ctx, "client-child0"))
	require.Equal(t, "one", output(t, rt, "client-child0", "until "+ask+"; do sleep 0.1; done"), "in the child's network, as before")
	require.NoError(t, rt.RemoveMachine(ctx, "child2", arcbox.RemoveMachineOptions{Force: true}))
	_, err = rt.InspectNetwork(ctx, "shop-child2")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	snap, err = rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{})
	require.NoError(t, err)
	for _, c := range []string{"server", "client", "server-child0", "client-child0", "server-child1", "client-child1"} {
		require.NoError(t, rt.RemoveContainer(ctx, c, arcbox.RemoveOptions{Force: true}))
	}
	require.NoError(t, rt.Close())

	forkOfAnotherRuntime(t, cfg, snap.ID)
	entries, err := os.ReadDir(filepath.Join(cfg.DataDir, "machines"))
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{".snapshots", "child0", "child1", "default"}, names)
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
