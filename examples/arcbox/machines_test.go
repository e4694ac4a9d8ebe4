//go:build linux

package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/event"
)

func TestMachineRecords(t *testing.T) {
	h := newHost(t)
	code, stdout, stderr := h.run("", "-q", "machine", "create", "-l", "for=test", "--size", "256", "lab")
	require.Zero(t, code, stderr)
	require.Equal(t, "lab\n", stdout)
	code, _, stderr = h.run("", "-q", "machine", "create", "lab")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "already exists")
	code, stdout, _ = h.run("", "-q", "machine", "ls")
	require.Zero(t, code)
	require.Regexp(t, `lab +stopped +\d+ +256 MiB +0`, stdout)
	code, stdout, stderr = h.run("", "-q", "machine", "update", "--processors", "2", "--size", "384", "lab")
	require.Zero(t, code, stderr)
	require.Equal(t, "lab\n", stdout)
	code, stdout, _ = h.run("", "-q", "machine", "ls")
	require.Zero(t, code)
	require.Regexp(t, `lab +stopped +2 +384 MiB +0`, stdout)
	code, stdout, _ = h.run("", "-q", "machine", "inspect", "lab")
	require.Zero(t, code)
	require.Contains(t, stdout, `"for": "test"`)
	for _, args := range [][]string{{"machine", "start", "lab"}, {"machine", "snapshot", "lab"}, {"machine", "console", "lab"}, {"events"}} {
		code, _, stderr = h.run("", append([]string{"-q"}, args...)...)
		require.Equal(t, exitOwn, code, args)
		require.Contains(t, stderr, noDaemon)
	}
	code, stdout, stderr = h.run("", "-q", "machine", "rm", "lab")
	require.Zero(t, code, stderr)
	require.Equal(t, "lab\n", stdout)
}

func TestMachinesInTheShell(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	code, stdout, stderr := h.shell(
		"machine create --forkable lab", "run -d --name web --machine lab busybox:test sleep 1000",
		"machine pause lab", "machine resume lab", "machine console lab", "machine snapshot --name warm lab",
		"machine create --snapshot warm child", "machine start child", "exec web-child echo in the child",
		"machine exec --image busybox:test child hostname", "machine exec --image busybox:test child ls -d /host/run",
		"machine ls", "machine ls --snapshots", "machine rm --snapshots warm", "machine stop lab", "machine rm -f lab child", "ps -a",
	)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "in the child\nchild\n/host/run\n")
	require.Regexp(t, `child +running`, stdout)
	require.Regexp(t, `warm +lab +\d+ MiB +web`, stdout)
}

func TestEventText(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	require.Equal(t, `2026-01-02T03:04:05.000006Z machine.crashed machine=lab error="it ended" retry_in="1s"`, eventText(event.Event{
		Time: at, Kind: event.MachineCrashed, Machine: "lab", Attributes: map[string]string{"retry_in": "1s", "error": "it ended"},
	}))
}
