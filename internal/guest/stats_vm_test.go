package guest_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

func TestStats(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	e := &execs{m: m, id: m.idle(t)}
	before, err := m.Stats(ctx, api.StatsRequest{ID: e.id})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), before.At, time.Hour)
	require.Equal(t, 2, before.CPUs)
	require.EqualValues(t, 1, before.PIDs)
	require.Positive(t, before.Memory)
	require.Greater(t, before.MemoryLimit, int64(64<<20))
	require.Empty(t, before.Networks, "there is only the loopback interface")
	e.sh(t, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null")
	after, err := m.Stats(ctx, api.StatsRequest{ID: e.id})
	require.NoError(t, err)
	require.Greater(t, after.CPU, before.CPU)
	require.Greater(t, after.CPUUser, before.CPUUser, "of an exec too")
	require.Greater(t, after.Memory, before.Memory+7<<20, "the kernel counts in batches for each processor")
	machine := after.SystemCPU - before.SystemCPU
	require.Greater(t, machine, (after.CPU-before.CPU)/2)
}

func TestTop(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	e := &execs{m: m, id: m.idle(t)}
	out := newLines()
	p, err := m.Exec(ctx, e.request([]string{"sh", "-c", "sleep 777 & until grep -qx sleep /proc/$!/comm; do :; done; echo up; wait"}, asUser("1000"), func(r *api.ExecRequest) {
		r.Process.TTY = true
	}), out, nil)
	require.NoError(t, err)
	defer p.Close()
	out.await(t, "up")
	top, err := m.Top(ctx, api.TopRequest{ID: e.id})
	require.NoError(t, err)
	require.Len(t, top.Processes, 3)
	one, sh, child := top.Processes[0], top.Processes[1], top.Processes[2]
	require.Equal(t, []string{"sleep", "1000000"}, one.Command)
	require.Equal(t, 1, one.PID)
	require.Zero(t, one.PPID)
	require.Positive(t, one.RSS)
	require.WithinDuration(t, time.Now(), one.Started, time.Hour)
	require.Equal(t, "sh", sh.Command[0])
	require.EqualValues(t, 1000, sh.UID)
	require.Zero(t, sh.PPID, "its parent is outside")
	require.Equal(t, "pts/0", sh.TTY)
	require.Equal(t, []string{"sleep", "777"}, child.Command)
	require.Equal(t, sh.PID, child.PPID)
}
