package guest_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// dataSize is the size of the data disks of the tests.
const dataSize = 2 << 30

// newDataDisk makes a data disk in dir.
func newDataDisk(t testing.TB, dir string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	path := filepath.Join(dir, "data.img")
	require.NoError(t, disk.Create(testContext(t), filepath.Join(cache, "arcbox-test", "disks"), path, dataSize, disk.Options{Temporary: true}))
	return path
}

// dataMachine boots a machine whose containers write on the disk.
func dataMachine(t testing.TB, path string, change ...func(*api.ConfigureRequest)) *machine {
	t.Helper()
	m := ownMachine(t, vm.Spec{CPUs: 1, Disks: []vm.Disk{{ID: "data", Path: path}}})
	req := api.ConfigureRequest{DataDisk: "data", Hostname: "m1", Time: time.Now()}
	for _, f := range change {
		f(&req)
	}
	require.NoError(t, m.Configure(testContext(t), req))
	return m
}

// runKept runs a script in a container with the id and keeps what it wrote, where keep is set.
func (m *machine) runKept(t testing.TB, id, script string, keep bool) string {
	t.Helper()
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", script})
	req.ID = id
	require.NoError(t, m.Create(ctx, req))
	var stdout, stderr bytes.Buffer
	p, err := m.Attach(ctx, api.AttachRequest{ID: id}, &stdout, &stderr)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: id})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, api.Exit{}, exit, stderr.String())
	require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: id, Keep: keep}))
	return stdout.String()
}

// powerOff powers a machine off and waits for its end.
func (m *machine) powerOff(t testing.TB) {
	t.Helper()
	require.NoError(t, m.Poweroff(testContext(t)))
	select {
	case <-m.inst.Done():
		require.NoError(t, m.inst.Err())
	case <-testContext(t).Done():
		t.Fatal("the machine does not power off")
	}
}

// fsck checks a disk that no machine has, and replays its journal first where replay is set.
func fsck(t testing.TB, path string, replay bool) {
	t.Helper()
	if replay {
		out, err := exec.Command("e2fsck", "-y", "-E", "journal_only", path).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 { // 1: something was done
			require.NoError(t, err, string(out))
		}
	}
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

const absent = "test -e /file && echo there || echo absent"

func TestDataIsKept(t *testing.T) {
	for name, onDisk := range map[string]bool{"in memory": false, "on a disk": true} {
		t.Run(name, func(t *testing.T) {
			m := useMachine(t)
			if onDisk {
				m = dataMachine(t, newDataDisk(t, t.TempDir()))
			}
			id := "kept-" + strings.ReplaceAll(name, " ", "-")
			require.Empty(t, m.runKept(t, id, "echo 1 > /file; rm /bin/plain", true))
			require.Equal(t, "1\n", m.runKept(t, id, "cat /file; test ! -e /bin/plain", true))
			ctx := testContext(t)
			require.ErrorIs(t, m.Remove(ctx, api.RemoveRequest{ID: id, Keep: true}), errs.ErrNotFound)
			require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: id}))
			require.ErrorIs(t, m.Remove(ctx, api.RemoveRequest{ID: id}), errs.ErrNotFound)
			require.Equal(t, "absent\n", m.runKept(t, id, absent, false))
			require.ErrorIs(t, m.Remove(ctx, api.RemoveRequest{ID: "../c"}), errs.ErrNotFound)
		})
	}
}

func TestConfigureOnce(t *testing.T) {
	ctx := testContext(t)
	m := useMachine(t)
	m.sh(t, "true")
	require.ErrorIs(t, m.Configure(ctx, api.ConfigureRequest{DataDisk: "data"}), errs.ErrConflict)
	require.ErrorIs(t, m.Configure(ctx, api.ConfigureRequest{Hostname: "a b"}), errs.ErrInvalid)
	require.ErrorIs(t, m.Configure(ctx, api.ConfigureRequest{Hostname: strings.Repeat("x", 65)}), errs.ErrInvalid)
	at := time.Now().Add(time.Hour)
	require.NoError(t, m.Configure(ctx, api.ConfigureRequest{Time: at}))
	require.Equal(t, at.UTC().Format("2006-01-02T15"), strings.TrimSpace(m.sh(t, "date -u +%Y-%m-%dT%H")))
	require.NoError(t, m.Configure(ctx, api.ConfigureRequest{Time: time.Now()}))
}

// TestDiskIsLeft has a machine let its data disk go, and use it again.
func TestDiskIsLeft(t *testing.T) {
	path := newDataDisk(t, t.TempDir())
	m := dataMachine(t, path)
	ctx := testContext(t)
	require.Equal(t, "", m.runKept(t, "one", "echo 1 > /file", true))
	req := request(t, []string{"sleep", "1000"})
	require.NoError(t, m.Create(ctx, req))
	require.ErrorIs(t, m.LeaveDisk(ctx), errs.ErrConflict)
	require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID, Force: true}))
	require.NoError(t, m.LeaveDisk(ctx))
	c, err := m.Census(ctx)
	require.NoError(t, err)
	require.NotContains(t, c.Mounts, "/run/d")
	require.NoError(t, m.LeaveDisk(ctx), "there is none any more")
	require.NoError(t, m.Configure(ctx, api.ConfigureRequest{DataDisk: "data", DiskLater: true}))
	require.NoError(t, m.LeaveDisk(ctx), "it was not needed yet")
	require.NoError(t, m.Configure(ctx, api.ConfigureRequest{DataDisk: "data"}))
	require.Equal(t, "1\n", m.runKept(t, "one", "cat /file", false))
	m.powerOff(t)
	fsck(t, path, false)
}

// TestDataSurvivesPowerOff stops and starts a machine, and sweeps what nobody knows any more.
func TestDataSurvivesPowerOff(t *testing.T) {
	path := newDataDisk(t, t.TempDir())
	m := dataMachine(t, path)
	m.runKept(t, "one", "echo 1 > /file", true)
	m.runKept(t, "two", "echo 2 > /file", true)
	m.runKept(t, "four", "echo 4 > /file", true)
	require.NoError(t, m.Create(testContext(t), func() api.CreateRequest { // one that is there at the end
		r := request(t, []string{"sleep", "1000"})
		r.ID = "three"
		return r
	}()))
	m.powerOff(t)
	fsck(t, path, false)

	m = dataMachine(t, path, func(r *api.ConfigureRequest) { r.Sweep, r.Known = true, []string{"one", "three"} })
	require.Equal(t, "1\n", m.runKept(t, "one", "cat /file", true))
	require.Equal(t, "absent\n", m.runKept(t, "two", absent, false), "it was swept")
	require.NoError(t, m.Remove(testContext(t), api.RemoveRequest{ID: "three"}), "known by its data only")
	require.ErrorIs(t, m.Remove(testContext(t), api.RemoveRequest{ID: "three"}), errs.ErrNotFound)
	require.Eventually(t, func() bool { // nobody asks for it
		rep, err := m.Census(testContext(t))
		require.NoError(t, err)
		return !slices.Contains(rep.Data, "/run/d/c/four")
	}, testTimeout, 50*time.Millisecond)
	require.ErrorIs(t, m.Remove(testContext(t), api.RemoveRequest{ID: "four"}), errs.ErrNotFound)
	m.powerOff(t)
	fsck(t, path, false)
}

// TestDataSurvivesKill kills QEMU while a container writes. What the container has synced is there afterwards.
func TestDataSurvivesKill(t *testing.T) {
	path := newDataDisk(t, t.TempDir())
	m := dataMachine(t, path)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", `i=0; while true; do i=$((i+1)); mkdir -p /d/$i; echo $i > /d/$i/f; dd if=/dev/urandom of=/d/$i/r bs=64k count=4 2>/dev/null; sync; echo $i; done`})
	req.ID = "writer"
	require.NoError(t, m.Create(ctx, req))
	lines := make(chan string, 1024)
	var stderr bytes.Buffer
	p, err := m.Attach(ctx, api.AttachRequest{ID: "writer"}, lineWriter(lines), &stderr)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: "writer"})
	require.NoError(t, err)
	last := ""
	for range 5 {
		select {
		case last = <-lines:
		case <-ctx.Done():
			t.Fatal("nothing is written")
		}
	}
	require.NoError(t, m.inst.Close()) // SIGKILL
	replica := filepath.Join(t.TempDir(), "replica")
	out, err := exec.Command("cp", "--sparse=always", path, replica).CombinedOutput()
	require.NoError(t, err, string(out))
	fsck(t, replica, true)

	m = dataMachine(t, path)
	require.Equal(t, last, m.runKept(t, "writer", "cd /d; for i in $(ls | sort -n); do cat $i/f; done | grep -x "+strings.TrimSpace(last), true))
	m.powerOff(t)
	fsck(t, path, false)
}

// lineWriter sends what is written to a channel.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		w <- line
	}
	return len(p), nil
}

// blocks returns how many bytes of its file system a file takes.
func blocks(t testing.TB, path string) int64 {
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// TestRemovedContainersGiveSpaceBack looks at the host's file while a container writes, and when it was removed.
func TestRemovedContainersGiveSpaceBack(t *testing.T) {
	path := newDataDisk(t, t.TempDir())
	m := dataMachine(t, path)
	const size = 100 << 20
	before := blocks(t, path)
	m.runKept(t, "big", "dd if=/dev/urandom of=/file bs=1M count=100 2>/dev/null && sync", true)
	require.Greater(t, blocks(t, path), before+size)
	require.NoError(t, m.Remove(testContext(t), api.RemoveRequest{ID: "big"}))
	require.Eventually(t, func() bool { return blocks(t, path) < before+size/5 }, testTimeout, 100*time.Millisecond)
}

// TestHostileTreesAreDeleted removes a tree that is deeper than any path, with files that cannot be deleted as they are.
func TestHostileTreesAreDeleted(t *testing.T) {
	path := newDataDisk(t, t.TempDir())
	m := dataMachine(t, path)
	script := "dd if=/dev/urandom of=/file bs=1M count=50 2>/dev/null; n=$(printf %0200d 0); i=0; while [ $i -lt 100 ]; do mkdir $n && cd $n && echo > f; i=$((i+1)); done; dd if=/dev/urandom of=big bs=1M count=50 2>/dev/null; sync"
	before := blocks(t, path)
	m.runKept(t, "deep", script, false)
	require.Eventually(t, func() bool { return blocks(t, path) < before+20<<20 }, testTimeout, 100*time.Millisecond)
	m.powerOff(t)
	fsck(t, path, false)
}

// TestHostDiskFull puts the disk where there is little room. The container that writes gets an error, and the machine
// goes on; where there is room again, what was written before is there.
func TestHostDiskFull(t *testing.T) {
	dir := needs.SmallDir(t, "64m")
	path := newDataDisk(t, dir)
	m := dataMachine(t, path)
	m.runKept(t, "early", "echo early > /file; sync", true)
	ctx := testContext(t)
	r, err := m.run(t, request(t, []string{"dd", "if=/dev/urandom", "of=/file", "bs=1M", "count=100", "conv=fsync"}), "")
	require.NoError(t, err)
	require.NotEqual(t, 0, r.exit.Code, "the writer learns it")
	_, err = m.Ping(ctx)
	require.NoError(t, err)
	require.NoError(t, m.inst.Close())

	needs.Grow(t, dir, "512m")
	m = dataMachine(t, path)
	require.Equal(t, "early\n", m.runKept(t, "early", "cat /file", true))
	m.powerOff(t)
}

// TestDataDiskThatIsNone boots with a disk without a file system: Create says what is wrong.
func TestDataDiskThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "garbage")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("garbage!"), 1<<17), 0o600))
	m := dataMachine(t, path)
	err := m.Create(testContext(t), request(t, []string{"true"}))
	require.ErrorIs(t, err, errs.ErrCorrupt)
	require.NotErrorIs(t, err, syscall.ENOENT)
	m.powerOff(t)
}

func BenchmarkContainerOnDisk(b *testing.B) {
	m := dataMachine(b, newDataDisk(b, b.TempDir()))
	m.runKept(b, "bench", "true", false)
	for b.Loop() {
		m.runKept(b, "bench", "true", false)
	}
}

func BenchmarkContainerInMemory(b *testing.B) {
	m := useMachine(b)
	m.runKept(b, "bench", "true", false)
	for b.Loop() {
		m.runKept(b, "bench", "true", false)
	}
}
