package arcbox_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// recordsArg makes the test binary a program that makes containers and is killed.
const recordsArg = "arcbox-test-records"

// counting says how often it was run, and that all it wrote has left the machine.
const counting = "echo x >> /f; echo run $(grep -c x /f); sleep 0.2; sync; echo synced; exec sleep 1000"

// records is that program. It kills itself as soon as its last call has returned, or with "hold" waits for somebody to do
// it.
func records(args []string) {
	ctx := context.Background()
	rt, err := arcbox.New(arcbox.Config{
		DataDir: args[0], VM: arcbox.VMConfig{CPUs: 2, Memory: 512 << 20}, Boot: arcbox.BootConfig{Dir: args[1]},
	})
	steps := map[string]func() error{
		"load":   func() error { _, err := rt.LoadImage(ctx, args[2], arcbox.LoadOptions{}); return err },
		"create": func() error { return createOf(ctx, rt, "b", "true") },
		"start": func() error {
			if err := createOf(ctx, rt, "a", counting); err != nil {
				return err
			}
			return rt.StartContainer(ctx, "a")
		},
		"wait": func() error {
			p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Name: "c", Image: "busybox:test", Args: sh("exit 3")}, arcbox.RunOptions{})
			if err == nil {
				_, err = p.Wait(ctx)
			}
			return err
		},
		"again": func() error {
			if err := rt.StartContainer(ctx, "a"); err != nil {
				return err
			}
			return rt.WaitFor(ctx, "a", arcbox.ForLog("synced", 1))
		},
		"remove": func() error { return rt.RemoveContainer(ctx, "b", arcbox.RemoveOptions{}) },
		"rename": func() error { return rt.RenameContainer(ctx, "c", "third") },
		"kill": func() error {
			self, err := os.FindProcess(os.Getpid())
			if err == nil {
				err = self.Kill()
			}
			return err
		},
		"hold": func() error { fmt.Println("held"); select {} },
	}
	for _, name := range args[3:] {
		if err == nil {
			err = steps[name]()
		}
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

func createOf(ctx context.Context, rt *arcbox.Runtime, name, script string) error {
	_, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Name: name, Image: "busybox:test", Args: sh(script)}, arcbox.CreateOptions{})
	return err
}

// startRecords starts the program and returns the first line that it prints, "" where it was killed before.
func startRecords(t *testing.T, args ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), os.Args[0], append([]string{recordsArg}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, _ := bufio.NewReader(out).ReadString('\n')
	require.NotContains(t, line, "error")
	return cmd, strings.TrimSpace(line)
}

// TestRecordsOfAKilledProgram kills a program with SIGKILL right after calls have returned, looks at its containers from
// beside it, and takes them over.
func TestRecordsOfAKilledProgram(t *testing.T) {
	shared.get(t)
	ctx := testContext(t)
	cfg := testConfig(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600))
	inspect := func(rt *arcbox.Runtime, ref string) arcbox.ContainerInfo {
		t.Helper()
		i, err := rt.InspectContainer(ctx, ref)
		require.NoError(t, err)
		return i
	}

	_, line := startRecords(t, cfg.DataDir, cfg.Boot.Dir, file, "load", "create", "start", "kill")
	require.Empty(t, line)
	rt, err := arcbox.New(cfg)
	require.NoError(t, err)
	require.Equal(t, arcbox.ContainerCreated, inspect(rt, "b").State)
	require.Equal(t, arcbox.ContainerExited, inspect(rt, "a").State)
	require.Equal(t, "the program that ran it ended", inspect(rt, "a").Reason)
	require.NoError(t, rt.Close())

	cmd, line := startRecords(t, cfg.DataDir, cfg.Boot.Dir, file, "again", "wait", "remove", "rename", "hold")
	require.Equal(t, "held", line)
	second := newRuntime(t, cfg)
	list, err := second.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, arcbox.ContainerRunning, inspect(second, "a").State, "the other program has it")
	for _, err := range []error{
		second.StopContainer(ctx, "a", arcbox.StopOptions{}), second.StartContainer(ctx, "third"),
		second.RemoveContainer(ctx, "a", arcbox.RemoveOptions{Force: true}),
	} {
		require.ErrorIs(t, err, arcbox.ErrInUse)
		require.ErrorContains(t, err, fmt.Sprintf("process %d", cmd.Process.Pid))
	}
	id := inspect(second, "a").ImageID
	_, err = second.RemoveImage(ctx, id, arcbox.RemoveImageOptions{Force: true})
	require.ErrorIs(t, err, arcbox.ErrInUse)
	require.ErrorContains(t, err, "by the running containers a:", "only the one that runs, of the other program")
	pruned, err := second.PruneImages(ctx, arcbox.PruneImagesOptions{All: true})
	require.NoError(t, err)
	require.Empty(t, pruned.Images)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Equal(t, arcbox.ContainerExited, inspect(second, "a").State, "nobody has it any more")
	_, err = second.RemoveImage(ctx, id, arcbox.RemoveImageOptions{})
	require.ErrorContains(t, err, "by the containers a, third:")
	require.ErrorIs(t, second.StartContainer(ctx, "a"), arcbox.ErrConflict)
	require.NoError(t, second.Close())

	third := newRuntime(t, cfg)
	list, err = third.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Len(t, list, 2, "what was removed stays so")
	require.Equal(t, arcbox.Exit{Code: 3}, inspect(third, "third").Exit)
	require.Equal(t, "the program that ran it ended", inspect(third, "a").Reason)
	_, err = third.WaitContainer(ctx, "a", arcbox.WaitOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	before := logOf(t, third, "a")
	require.NoError(t, third.StartContainer(ctx, "a"))
	require.NoError(t, third.WaitFor(ctx, "a", arcbox.ForLog("synced", strings.Count(before, "synced")+1)))
	runs := func(log string) (last int) {
		for l := range strings.Lines(log) {
			_, _ = fmt.Sscanf(l, "run %d", &last)
		}
		return last
	}
	require.Positive(t, runs(before), "what was logged before the sync is there")
	require.Equal(t, runs(before)+1, runs(logOf(t, third, "a")), "its files too")
}
