package box

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

func TestStatsOfACgroup(t *testing.T) {
	g := cgroup{t.TempDir()}
	require.Equal(t, api.StatsReply{MemoryLimit: 1000}, g.stats(1000), "a kernel that counts nothing")
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nthrottled_usec 7\n",
		"memory.current": "100\n",
		"memory.stat":    "anon 60\ninactive_file 30\n",
		"memory.peak":    "120\n",
		"memory.max":     "500\n",
		"memory.events":  "oom 1\noom_kill 4\n",
		"pids.current":   "6\n",
		"pids.max":       "max\n",
		"io.stat":        "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=9 dios=9\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n8:32\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600))
	}
	us := time.Microsecond
	require.Equal(t, api.StatsReply{
		CPU: 5 * us, CPUUser: 3 * us, CPUSystem: 2 * us, Throttled: 7 * us,
		Memory: 100, MemoryCache: 30, MemoryPeak: 120, MemoryLimit: 500, OOMKills: 4, PIDs: 6,
		ReadBytes: 11, WriteBytes: 22, ReadOps: 33, WriteOps: 44,
	}, g.stats(1000))
	require.EqualValues(t, 400, g.stats(400).MemoryLimit, "the machine has less")
}

func TestMachineCPU(t *testing.T) {
	total, cpus := machineCPU([]byte("cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 2\ncpu1 1 2\nintr 5\n\n"))
	require.Equal(t, 36*tick, total)
	require.Equal(t, 2, cpus)
}

func TestInterfaces(t *testing.T) {
	require.Equal(t, []api.NetStats{{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12}},
		interfaces([]byte("Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nbad: 1\n")))
}

func TestHostileProcesses(t *testing.T) {
	var p api.ProcessInfo
	require.True(t, parseStat([]byte("7 (a) S 1 (\n) R 3 7 7 34817 7 4194304 1 2 3 4 150 50 0 0 20 0 1 0 200 1000 5 18"), &p))
	require.Equal(t, api.ProcessInfo{PPID: 3, State: "R", TTY: "pts/1", CPU: 2 * time.Second, RSS: 5 * int64(os.Getpagesize()),
		Started: time.Time{}.Add(2 * time.Second), Command: []string{"[a) S 1 (\n]"}}, p)
	for _, s := range []string{"", "7", ")(", "7 (a)", "7 (a) S 1", "7 )a( S 1"} {
		require.False(t, parseStat([]byte(s), &p), s)
	}
	require.True(t, parseStatus([]byte("Name:\tUid:\t9\nUid:\t1000\t0\t0\t0\nNSpid:\t500\t5\t1\n"), &p))
	require.Equal(t, 5, p.PID)
	require.Zero(t, p.UID)
	for _, s := range []string{"", "NSpid:\t5\n", "NSpid:\t5\tx\n", "NSpid:\t5\t0\n"} {
		require.False(t, parseStatus([]byte(s), &p), s)
	}
	require.Equal(t, []string{"a", "", "b\uFFFD"}, arguments([]byte("a\x00\x00b\xff\x00")))
	require.True(t, isBelow([]byte("0::/arcbox/c-a/exec-1\n"), "/arcbox/c-a"))
	require.True(t, isBelow([]byte("0::/arcbox/c-a\n"), "/arcbox/c-a"))
	require.False(t, isBelow([]byte("0::/arcbox/c-ab\n"), "/arcbox/c-a"))
	require.Equal(t, "console", terminalName(5<<8|1))
	require.Empty(t, terminalName(0))
	require.Equal(t, "pts/300", terminalName(136<<8|300&0xff|(300&^0xff)<<12))
}

func FuzzProcess(f *testing.F) {
	f.Add([]byte("7 (a) R 3 7 7 34817 7 4194304 1 2 3 4 150 50 0 0 20 0 1 0 200 1000 5 18"), []byte("NSpid:\t5\t1\n"))
	f.Fuzz(func(t *testing.T, stat, status []byte) {
		var p api.ProcessInfo
		if parseStat(stat, &p) {
			require.Len(t, p.State, 1)
			require.NotEmpty(t, p.Command)
		}
		if parseStatus(status, &p) {
			require.Positive(t, p.PID)
		}
		machineCPU(stat)
		interfaces(stat)
		keyed(stat)
	})
}
