package arcbox_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// again starts a container that has exited before, and returns all that it has ever written.
func again(t *testing.T, rt *arcbox.Runtime, ref string) string {
	t.Helper()
	ctx := testContext(t)
	require.NoError(t, rt.StartContainer(ctx, ref))
	exit, err := rt.WaitContainer(ctx, ref, arcbox.WaitOptions{})
	require.NoError(t, err)
	require.Equal(t, arcbox.Exit{}, exit)
	var all bytes.Buffer
	for l, err := range rt.ContainerLogs(ctx, ref, arcbox.LogsOptions{}) {
		require.NoError(t, err)
		all.Write(l.Line)
	}
	return all.String()
}

// TestDataSurvivesTheProgram writes in a container, closes the runtime, and starts the container in another one.
func TestDataSurvivesTheProgram(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	ctx := testContext(t)
	first, err := arcbox.New(cfg)
	require.NoError(t, err)
	loadBusybox(t, first)
	spec := arcbox.ContainerSpec{Name: "counter", Image: "busybox:test", Args: sh("echo x >> /file; grep -c x /file")}
	p, err := first.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)
	spec.Name = "removed"
	p, err = first.RunContainer(ctx, spec, arcbox.RunOptions{})
	require.NoError(t, err)
	_, err = p.Wait(ctx)
	require.NoError(t, err)

	second := newRuntime(t, cfg) // has a machine and a disk of its own
	_, err = second.CreateContainer(ctx, arcbox.ContainerSpec{Name: "counter", Image: "busybox:test"}, arcbox.CreateOptions{})
	require.NoError(t, err)
	private, err := filepath.Glob(filepath.Join(cfg.DataDir, "machines", ".private-*", "disk.img"))
	require.NoError(t, err)
	require.Len(t, private, 1)
	require.NoError(t, second.Close())
	require.NoFileExists(t, private[0])

	require.NoError(t, first.Close())
	entries, err := os.ReadDir(filepath.Join(cfg.DataDir, "machines"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	third := newRuntime(t, cfg)
	require.NoError(t, third.CopyTo(ctx, "counter", "/", tarOf(t, "copied", "before its start"), arcbox.CopyToOptions{}))
	st, err := third.StatPath(ctx, "counter", "/copied")
	require.NoError(t, err)
	require.EqualValues(t, 16, st.Size)
	require.Equal(t, "1\n2\n", again(t, third, "counter"), "the log too")
	require.Equal(t, "1\n2\n3\n", again(t, third, "counter"))
	require.NoError(t, third.RemoveContainer(ctx, "removed", arcbox.RemoveOptions{}))
}

func TestEphemeralMachineHasNoDisk(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	cfg.VM.Ephemeral = true
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	require.Equal(t, "written\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo written > /f; cat /f")}, arcbox.RunOptions{}).stdout)
	disks, err := filepath.Glob(filepath.Join(cfg.DataDir, "machines", "*", "disk.img"))
	require.NoError(t, err)
	require.Empty(t, disks)
	private, err := filepath.Glob(filepath.Join(cfg.DataDir, "machines", ".private-*", "*"))
	require.NoError(t, err)
	require.Len(t, private, 2, "the lock and its owner")
}

// BenchmarkFirstContainer is a runtime's first container, with a boot, where containers write on a disk and in memory.
func BenchmarkFirstContainer(b *testing.B) {
	shared.get(b)
	for name, ephemeral := range map[string]bool{"disk": false, "memory": true} {
		for _, template := range []arcbox.TemplateMode{arcbox.TemplateOff, arcbox.TemplateAuto} {
			b.Run(name+"/template="+string(template), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					cfg := testConfig(b)
					cfg.VM.Ephemeral, cfg.VM.Template = ephemeral, template
					rt, err := arcbox.New(cfg)
					require.NoError(b, err)
					loadBusybox(b, rt)
					b.StartTimer()
					_, err = rt.CreateContainer(testContext(b), arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
					require.NoError(b, err)
					b.StopTimer()
					require.NoError(b, rt.Close())
					b.StartTimer()
				}
			})
		}
	}
}
