package arcbox_test

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// inMachine executes a script in the default machine and returns what it writes.
func inMachine(t *testing.T, rt *arcbox.Runtime, script string, opts arcbox.RunOptions) (string, arcbox.Exit) {
	t.Helper()
	var out bytes.Buffer
	opts.Stdout, opts.Stderr = &out, &out
	spec := arcbox.MachineExecSpec{Image: "busybox:test", Args: sh(script), Env: []string{"GREETING=hello"}}
	ctx := testContext(t)
	p, err := rt.ExecMachine(ctx, arcbox.DefaultMachine, spec, opts)
	require.NoError(t, err)
	require.Empty(t, p.ContainerID())
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	return out.String(), exit
}

// TestExecMachine looks at a machine from inside, and at a container in it from there.
func TestExecMachine(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Name: "inhabitant", Image: "busybox:test", Args: []string{"sleep", "4321"}, AutoRemove: true,
	}, arcbox.RunOptions{})
	require.NoError(t, err)
	defer func() {
		require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{Force: true}))
	}()

	out, exit := inMachine(t, rt, `
		ps -o args | grep -c '^sleep 4321'
		cat /host/proc/1/comm; ls -d /host/run
		dmesg | grep -c 'Linux version'
		hostname; id -u; echo $GREETING; pwd
		ls /sys/fs/cgroup/arcbox | grep -c ^c-
		cat; touch /written; exit 7`, arcbox.RunOptions{Stdin: strings.NewReader("from outside\n")})
	lines := strings.Split(out, "\n")
	require.Equal(t, "1", lines[0], out)
	require.Equal(t, "/host/run", lines[2], out)
	require.Equal(t, "1", lines[3], out)
	require.Equal(t, []string{"default", "0", "hello", "/"}, lines[4:8], out)
	require.Contains(t, out, "from outside\n")
	require.Equal(t, arcbox.Exit{Code: 7}, exit)

	out, exit = inMachine(t, rt, `ls /written; sleep 5432 & sleep 5432 >/dev/null 2>&1 & mkdir /m; mount -t tmpfs none /m && mount | grep -c ' /m '`, arcbox.RunOptions{})
	require.Contains(t, out, "/written: No such file")
	require.True(t, strings.HasSuffix(out, "\n1\n"), out)
	require.Zero(t, exit.Code)
	out, _ = inMachine(t, rt, `ps -o args | grep -c '^sleep 5432'; mount | grep -c ' /m '`, arcbox.RunOptions{})
	require.Equal(t, "0\n0\n", out, "what it left ended with it")
}

// TestExecMachineTerminal resizes, signals and closes processes in a machine.
func TestExecMachineTerminal(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	in, keyboard := io.Pipe()
	screen, out := io.Pipe()
	defer screen.Close()
	defer keyboard.Close()
	p, err := rt.ExecMachine(ctx, arcbox.DefaultMachine, arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"sh"}, TTY: true},
		arcbox.RunOptions{Stdin: in, Stdout: out, Rows: 11, Cols: 99})
	require.NoError(t, err)
	lines := bufio.NewScanner(screen)
	typed := func(text string, want ...string) {
		_, err := io.WriteString(keyboard, text+"\n")
		require.NoError(t, err)
		for len(want) > 0 && lines.Scan() {
			if strings.TrimSpace(lines.Text()) == want[0] {
				want = want[1:]
			}
		}
		require.Empty(t, want)
	}
	typed("stty size; tty; echo $TERM", "11 99", "/dev/pts/0", "xterm")
	require.NoError(t, p.Resize(ctx, 22, 88))
	typed("stty size; trap 'echo caught; exit 3' USR1; echo s''et", "22 88", "set")
	require.NoError(t, p.Signal(ctx, "USR1"))
	typed("", "caught")
	go func() { _, _ = io.Copy(io.Discard, screen) }() // ends with the screen
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
	require.ErrorIs(t, p.Signal(ctx, "USR1"), arcbox.ErrConflict)

	p, err = rt.ExecMachine(ctx, arcbox.DefaultMachine, arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"sleep", "6543"}}, arcbox.RunOptions{})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	_, err = p.Wait(ctx)
	require.ErrorIs(t, err, arcbox.ErrClosed)
	require.Eventually(t, func() bool { // the kill is on its way
		out, _ := inMachine(t, rt, "ps -o args | grep -c '^sleep 6543'", arcbox.RunOptions{})
		return out == "0\n"
	}, time.Minute, 20*time.Millisecond)
}

// TestExecMachineErrors asks for what cannot be had.
func TestExecMachineErrors(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	for name, tc := range map[string]struct {
		machine string
		spec    arcbox.MachineExecSpec
		want    error
	}{
		"no machine":   {"none", arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"true"}}, arcbox.ErrNotFound},
		"no image":     {"default", arcbox.MachineExecSpec{Args: []string{"true"}}, arcbox.ErrInvalid},
		"no arguments": {"default", arcbox.MachineExecSpec{Image: "busybox:test"}, arcbox.ErrInvalid},
		"bad path":     {"default", arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"true"}, WorkingDir: "x"}, arcbox.ErrInvalid},
		"bad user":     {"default", arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"true"}, User: "nobody-there"}, arcbox.ErrInvalid},
		"no such one":  {"default", arcbox.MachineExecSpec{Image: "none:test", Args: []string{"true"}}, arcbox.ErrNotFound},
		"no command":   {"default", arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"nope"}}, arcbox.ErrCommandNotFound},
		"no program":   {"default", arcbox.MachineExecSpec{Image: "busybox:test", Args: []string{"/bin"}}, arcbox.ErrCommandNotExecutable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rt.ExecMachine(ctx, tc.machine, tc.spec, arcbox.RunOptions{Pull: arcbox.PullNever})
			require.ErrorIs(t, err, tc.want)
		})
	}
}
