package arcbox_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// isOpen tells whether a process has a file open.
func isOpen(t *testing.T, path string) bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	require.NoError(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == path {
			return true
		}
	}
	return false
}

// TestMachineGetsItsDiskWhenItIsUsed starts a machine that has data of containers and volumes, again and again, and does one
// thing in it that needs the disk, or none.
func TestMachineGetsItsDiskWhenItIsUsed(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	log := logged(&cfg)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	disk := filepath.Join(cfg.DataDir, "machines", arcbox.DefaultMachine, "disk.img")
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
	require.True(t, isOpen(t, disk), "it came with the machine")

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
		"its agent": func(t *testing.T) { dialed(t, rt)() },
		"a removal": func(t *testing.T) {
			gone := arcbox.ContainerSpec{Name: "gone", Image: "busybox:test"}
			_, err := rt.CreateContainer(ctx, gone, arcbox.CreateOptions{})
			require.NoError(t, err)
			require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
			require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
			require.False(t, isOpen(t, disk))
			require.NoError(t, rt.RemoveContainer(ctx, "gone", arcbox.RemoveOptions{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
			require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
			require.False(t, isOpen(t, disk), "nobody has needed it")
			if use != nil {
				use(t)
				require.True(t, isOpen(t, disk))
			}
		})
	}
	require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
	require.NotContains(t, log.String(), "did not power off")
}

// TestDiskThatCannotBeUsed: the machine starts, who needs the disk is told, and gets it when it is whole again.
func TestDiskThatCannotBeUsed(t *testing.T) {
	shared.get(t)
	cfg, ctx := testConfig(t), testContext(t)
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	dir := filepath.Join(cfg.DataDir, "machines", arcbox.DefaultMachine)
	disk, away := filepath.Join(dir, "disk.img"), filepath.Join(dir, "away")
	create := func() error {
		_, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
		return err
	}
	require.NoError(t, os.Rename(disk, away))
	require.ErrorContains(t, create(), "attach the data disk")
	require.NoError(t, os.Rename(away, disk))
	require.NoError(t, create())

	require.NoError(t, rt.StopMachine(ctx, arcbox.DefaultMachine))
	require.NoError(t, os.Truncate(disk, 0))
	require.NoError(t, os.Truncate(disk, 1<<30))
	require.NoError(t, rt.StartMachine(ctx, arcbox.DefaultMachine))
	err := create()
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
