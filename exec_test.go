package arcbox_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// sleeper runs a container that does nothing until the test ends.
func sleeper(t testing.TB, rt *arcbox.Runtime, spec arcbox.ContainerSpec) string {
	t.Helper()
	spec.Image, spec.Args = "busybox:test", []string{"sleep", "1000"}
	p, err := rt.RunContainer(testContext(t), spec, arcbox.RunOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{Force: true}))
		require.NoError(t, p.Close())
	})
	return p.ID()
}

func TestCommand(t *testing.T) {
	rt := shared.get(t)
	id := sleeper(t, rt, arcbox.ContainerSpec{Env: []string{"A=1"}, WorkingDir: "/tmp", Hostname: "box"})

	out, err := rt.Command(id, "sh", "-c", "echo $A $B; pwd; hostname; ps | grep -c 'sleep 1000'").Output()
	require.NoError(t, err)
	require.Equal(t, "1\n/tmp\nbox\n", string(out[:len("1\n/tmp\nbox\n")]))

	c := rt.Command(id, "sh", "-c", "echo $A$B; pwd; id -un; cat; echo oops >&2; exit 3")
	c.Env, c.Dir, c.User, c.Stdin = []string{"B=2"}, "/etc", "user", strings.NewReader("typed\n")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	var exit *arcbox.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode())
	require.Equal(t, "exit status 3", exit.Error())
	require.Equal(t, "12\n/etc\nuser\ntyped\n", stdout.String())
	require.Equal(t, "oops\n", stderr.String())
	require.ErrorIs(t, c.Start(), arcbox.ErrConflict)

	_, err = rt.Command(id, "sh", "-c", "echo why >&2; exit 1").Output()
	require.ErrorAs(t, err, &exit)
	require.Equal(t, "why\n", string(exit.Stderr))
	out, err = rt.Command(id, "sh", "-c", "echo a; echo b >&2; kill -9 $$").CombinedOutput()
	require.ErrorAs(t, err, &exit)
	require.Equal(t, "signal: KILL", exit.Error())
	require.ElementsMatch(t, []string{"a", "b"}, strings.Fields(string(out)))

	require.ErrorIs(t, rt.Command(id, "no-such").Run(), arcbox.ErrCommandNotFound)
	require.ErrorIs(t, rt.Command(id, "/etc/passwd").Run(), arcbox.ErrCommandNotExecutable)
	require.ErrorIs(t, rt.Command("no-such", "true").Run(), arcbox.ErrNotFound)
	require.ErrorIs(t, rt.Command(id, "").Run(), arcbox.ErrInvalid)
	require.ErrorIs(t, rt.Command(id, "true").Wait(), arcbox.ErrConflict)
}

func TestCommandPipes(t *testing.T) {
	rt := shared.get(t)
	id := sleeper(t, rt, arcbox.ContainerSpec{})
	c := rt.Command(id, "sh", "-c", "while read l; do echo got $l; done; echo end")
	in, err := c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	_, err = c.StdoutPipe()
	require.ErrorIs(t, err, arcbox.ErrConflict)
	require.NoError(t, c.Start())
	lines := bufio.NewReader(out)
	for _, s := range []string{"one", "two"} {
		_, err = io.WriteString(in, s+"\n")
		require.NoError(t, err)
		l, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "got "+s+"\n", l)
	}
	require.NoError(t, in.Close())
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Equal(t, "end\n", string(rest))
	require.NoError(t, c.Wait())

	ctx, cancel := context.WithCancel(t.Context())
	c = rt.CommandContext(ctx, id, "sleep", "500")
	require.NoError(t, c.Start())
	cancel()
	require.ErrorIs(t, c.Wait(), context.Canceled)
	require.Eventually(t, func() bool { // the kill is on its way
		out, err := rt.Command(id, "ps").Output()
		return err == nil && !strings.Contains(string(out), "sleep 500")
	}, time.Minute, 20*time.Millisecond)
}

func TestExecDetachedAndInspected(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := sleeper(t, rt, arcbox.ContainerSpec{})
	p, err := rt.Exec(ctx, id, arcbox.ExecSpec{Args: sh("sleep 300; exit 4"), Detach: true}, arcbox.ExecOptions{})
	require.NoError(t, err)
	require.Equal(t, id, p.ContainerID())
	require.NoError(t, p.Close())
	info, err := rt.InspectExec(ctx, p.ID())
	require.NoError(t, err)
	require.True(t, info.Running)
	require.Equal(t, sh("sleep 300; exit 4"), info.Args)
	require.NoError(t, p.Signal(ctx, "KILL"))
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, arcbox.Exit{Code: 137, Signal: "KILL"}, exit)
	info, err = rt.InspectExec(ctx, p.ID()[:16])
	require.NoError(t, err)
	require.False(t, info.Running)
	require.Equal(t, exit, info.Exit)
	_, err = rt.InspectExec(ctx, "nope")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
}

func TestExecEndsWithItsContainer(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	c, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: []string{"sleep", "1000"}}, arcbox.RunOptions{})
	require.NoError(t, err)
	p, err := rt.Exec(ctx, c.ID(), arcbox.ExecSpec{Args: []string{"sleep", "900"}}, arcbox.ExecOptions{})
	require.NoError(t, err)
	require.NoError(t, rt.KillContainer(ctx, c.ID(), ""))
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 137, exit.Code)
	_, err = c.Wait(ctx) // of their ends, that of either may be told first
	require.NoError(t, err)
	_, err = rt.Exec(ctx, c.ID(), arcbox.ExecSpec{Args: []string{"true"}}, arcbox.ExecOptions{})
	require.ErrorIs(t, err, arcbox.ErrConflict)
	require.NoError(t, rt.RemoveContainer(ctx, c.ID(), arcbox.RemoveOptions{}))
}
