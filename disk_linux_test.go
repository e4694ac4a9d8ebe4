package arcbox_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// usesDisk tells whether the default machine has its disk mounted.
func usesDisk(t *testing.T, rt *arcbox.Runtime) bool {
	t.Helper()
	return slices.Contains(census(t, rt).Mounts, "/run/d")
}

// TestMachineGetsItsDiskWhenItIsUsed starts a machine that has data of containers and volumes, again and again, and does one
// thing in it that needs the disk, or none.
func TestMachineGetsItsDiskWhenItIsUsed(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	log := logged(&cfg)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	for _, name := range []string{"one", "two"} {
		_, err := rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: name})
		require.NoError(t, err)
		p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
			Name: name, Image: "busybox:test", Args: sh("echo said; echo x >> /f; echo x >> /v/f; grep -c x /f /v/f"),
			Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Source: name, Target: "/v"}},
		}, arcbox.RunOptions{})
		require.NoError(t, err)
		_, err = p.Wait(ctx)
		require.NoError(t, err)
	}
	require.True(t, usesDisk(t, rt), "it came with the machine")

	for name, use := range map[string]func(t *testing.T){
		"nothing": nil,
		"a container that has exited": func(t *testing.T) {
			require.Equal(t, "said\n/f:1\n/v/f:1\nsaid\n/f:2\n/v/f:2\n", again(t, rt, "one"))
		},
		"a new container": func(t *testing.T) {
			require.Equal(t, "new\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo new")}, arcbox.RunOptions{}).stdout)
		},
		"what a container wrote": func(t *testing.T) {
			st, err := rt.StatPath(ctx, "two", "/f")
			require.NoError(t, err)
			require.EqualValues(t, 2, st.Size)
		},
		"a volume": func(t *testing.T) {
			var tar bytes.Buffer
			require.NoError(t, rt.ExportVolume(ctx, "two", &tar))
			require.Contains(t, tar.String(), "x\n")
		},
		"a command in the machine": func(t *testing.T) {
			var out bytes.Buffer
			p, err := rt.ExecMachine(ctx, arcbox.DefaultMachine, arcbox.MachineExecSpec{
				Image: "busybox:test", Args: sh("ls -d /host/run/d/c"),
			}, arcbox.RunOptions{Stdout: &out})
			require.NoError(t, err)
			_, err = p.Wait(ctx)
			require.NoError(t, err)
			require.Equal(t, "/host/run/d/c\n", out.String())
		},
		"a removal": func(t *testing.T) {
			gone := arcbox.ContainerSpec{Name: "gone", Image: "busybox:test"}
			_, err := rt.CreateContainer(ctx, gone, arcbox.CreateOptions{})
			require.NoError(t, err)
			require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
			require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
			require.False(t, usesDisk(t, rt))
			require.NoError(t, rt.RemoveContainer(ctx, "gone", arcbox.RemoveOptions{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
			require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
			require.False(t, usesDisk(t, rt), "nobody has needed it")
			if use != nil {
				use(t)
				require.True(t, usesDisk(t, rt))
			}
		})
	}
	require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
	require.NotContains(t, log.String(), "did not power off")
}

// TestDiskThatCannotBeUsed: a machine whose disk was cut short does not start. With one that is no disk it does, and who
// needs it is told.
func TestDiskThatCannotBeUsed(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
	disk := filepath.Join(cfg.DataDir, "machines", arcbox.DefaultMachine, "disk.img")
	require.NoError(t, os.Truncate(disk, 1<<30))
	err := rt.StartMachine(ctx, arcbox.DefaultMachine)
	require.ErrorIs(t, err, arcbox.ErrCorrupt)
	require.ErrorContains(t, err, "restore it, or remove it")

	require.NoError(t, os.Truncate(disk, 0))
	require.NoError(t, os.Truncate(disk, 1<<30))
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	_, err = rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrCorrupt)
	require.ErrorContains(t, err, "e2fsck")
}

// TestForkOfAMachineThatHasNotUsedItsDisk has what was on the disk all the same.
func TestForkOfAMachineThatHasNotUsedItsDisk(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	cfg.VM.Forkable = true
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	_, err := rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: "v"})
	require.NoError(t, err)
	mounts := []arcbox.Mount{{Type: arcbox.MountVolume, Source: "v", Target: "/v"}}
	write := arcbox.ContainerSpec{Args: sh("echo written >> /v/f; cat /v/f"), Mounts: mounts}
	require.Equal(t, "written\n", run(t, rt, write, arcbox.RunOptions{}).stdout)
	require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	snap, err := rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Temporary: true})
	require.NoError(t, err)
	_, err = rt.CreateMachine(ctx, arcbox.MachineSpec{Name: "child", Snapshot: snap.ID})
	require.NoError(t, err)
	write.Machine = "child"
	require.Equal(t, "written\nwritten\n", run(t, rt, write, arcbox.RunOptions{}).stdout)
	write.Machine = ""
	require.Equal(t, "written\nwritten\n", run(t, rt, write, arcbox.RunOptions{}).stdout, "the parent's is its own")
}

// bays is how many disks a machine from a template has from the start: one to write on, and some for layers.
const bays = 9

// TestLayersAreInBays runs images with more layers than a machine has bays for: what is left over is added, and a fork has
// all of them where they were. What is deleted on the data disk, which is in a bay too, leaves a hole.
func TestLayersAreInBays(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	cfg.VM.Accelerator, cfg.VM.Forkable = vm.AcceleratorTCG, true // with hardware virtualisation there are no templates yet
	log := logged(&cfg)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	image := func(name string, layers int) (want string) {
		spec := arcbox.ImageSpec{Base: "busybox:test", Names: []string{name}}
		for n := range layers {
			text := fmt.Sprintf("%s has %d\n", name, n)
			spec.Layers = append(spec.Layers, arcbox.ImageLayer{Files: map[string]arcbox.ImageFile{fmt.Sprint("/layer", n): {Data: []byte(text)}}})
			want += text
		}
		_, err := rt.BuildImage(ctx, spec, arcbox.BuildOptions{})
		require.NoError(t, err)
		return want
	}
	few, many := image("few:1", 1), image("many:1", 9)
	reads := func(machine, image, want string) {
		t.Helper()
		got := run(t, rt, arcbox.ContainerSpec{Machine: machine, Image: image, Args: sh("cat /layer*")}, arcbox.RunOptions{})
		require.Equal(t, want, got.stdout)
	}
	reads("", "few:1", few)
	require.Len(t, census(t, rt).Disks, bays, "no disk came")
	reads("", "many:1", many)
	require.Len(t, census(t, rt).Disks, bays+3, "busybox, few and six of many are in bays")

	snap, err := rt.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Temporary: true})
	require.NoError(t, err)
	_, err = rt.CreateMachine(ctx, arcbox.MachineSpec{Name: "child", Snapshot: snap.ID})
	require.NoError(t, err)
	reads("child", "many:1", many)
	reads("child", "later:1", image("later:1", 1))
	require.NoError(t, rt.StopMachine(ctx, "child"))
	reads("child", "many:1", many) // from a template now, with a disk that may be a layer over its parent's
	require.NotContains(t, log.String(), noTemplate)
	require.NotContains(t, log.String(), "a bay takes no disk")

	leavesAHole(t, rt, filepath.Join(cfg.DataDir, "machines", arcbox.DefaultMachine, "disk.img"))
}

// leavesAHole lets a container write to a disk and removes it.
func leavesAHole(t *testing.T, rt *arcbox.Runtime, disk string) {
	t.Helper()
	size := func() int64 {
		var st syscall.Stat_t
		require.NoError(t, syscall.Stat(disk, &st))
		return st.Blocks * 512
	}
	before, ctx := size(), testContext(t)
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Image: "busybox:test", Args: sh("for i in 1 2 3 4 5 6; do cat /bin/busybox; done | head -c 6000000 > /f && sync"),
	}, arcbox.RunOptions{})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, arcbox.Exit{}, exit)
	require.Greater(t, size(), before+6_000_000)
	require.NoError(t, rt.RemoveContainer(ctx, p.ContainerID(), arcbox.RemoveOptions{}))
	require.Eventually(t, func() bool { return size() < before+3_000_000 }, testTimeout, 10*time.Millisecond)
}
