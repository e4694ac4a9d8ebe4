package guest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
	"github.com/arcboxlabs/arcbox-go/vm"
)

func TestIsolation(t *testing.T) {
	m := useMachine(t)
	for name, tc := range map[string]struct{ script, want string }{
		"devices of others": {`
			mknod /disk b 8 0 && cat /disk 2>&1 | grep -o "not permitted"
			mknod /port c 244 1 && cat /port 2>&1 | grep -o "not permitted"
			mknod /mem c 1 1 && cat /mem 2>&1 | grep -o "not permitted"
			mknod /null c 1 3 && cat /null && echo own`, "not permitted\nnot permitted\nnot permitted\nown\n"},
		"the kernel": {`
			for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/profiling /sys/fs/cgroup/cgroup.procs; do
				(echo 1 > $f) 2>/dev/null && echo wrote $f
			done
			head -c 1 /proc/kcore | wc -c
			ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | wc -w
			mount -t tmpfs none /tmp 2>/dev/null || echo no mounts`, "0\n0\nno mounts\n"},
		"file systems of the agent": {`
			grep -c " /run/\| /root.new\|rootfs" /proc/self/mountinfo
			ls /run /lib 2>/dev/null
			cd /; cd ../../..; ls -d bin`, "0\nbin\n"},
		"processes of others": {`echo /proc/[0-9]*; readlink /proc/1/exe`, "/proc/1\n/bin/busybox\n"},
		"vsock":               {`probe vsock`, "answer: false <nil>\n"},
		"files of the agent":  {`probe fds | cut -d" " -f1-3; echo /proc/1/fd/*`, "0 1 2\n/proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2 /proc/1/fd/3\n"},
		"signals":             {`probe signals`, "0\n"},
		"ports and pings":     {`cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ping_group_range`, "0\n0\t2147483647\n"},
		"cgroup":              {`cat /proc/self/cgroup; ls -d /sys/fs/cgroup/cgroup.procs`, "0::/\n/sys/fs/cgroup/cgroup.procs\n"},
		"timers of VLANs":     {`cat /sys/module/garp/parameters/* /sys/module/mrp/parameters/*`, "3600000\n3600000\n3600000\n"},
		"network of others":   {`ip link | grep -c "^[0-9]"`, "1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := m.run(t, request(t, []string{"sh", "-c", tc.script}), "")
			require.NoError(t, err)
			require.Equal(t, tc.want, r.stdout, r.stderr)
		})
	}
}

func TestContainersDoNotSeeEachOther(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "echo secret > /file; echo ready; sleep 1000"})
	req.ID = "neighbour"
	m.create(t, req)
	out := newLines()
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID}, out, nil)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	out.await(t, "ready")
	require.Equal(t, "0\n/proc/1\n", m.sh(t, `cat /proc/self/mountinfo /proc/self/cgroup | grep -c neighbour; echo /proc/[0-9]*; ls /file 2>/dev/null; true`))
}

func TestImageThatLeadsElsewhere(t *testing.T) {
	m := useMachine(t)
	for name, files := range map[string][]file{
		"links":          {{name: "proc", link: "/run"}, {name: "dev", link: "../../../run"}, {name: "run/", mode: 0o755}, {name: "etc", link: "/nowhere"}},
		"hosts is one":   {{name: "etc/", mode: 0o755}, {name: "etc/hosts", link: "/bin/sh"}, {name: "etc/resolv.conf", link: "/none/x"}, {name: "etc/hostname/", mode: 0o755}},
		"proc is a file": {{name: "proc", mode: 0o644, body: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			serial := strings.Fields(name)[0]
			path := filepath.Join(m.dir, serial)
			require.NoError(t, writeLayer(path, files))
			disks := m.inst.(vm.DiskAttacher)
			require.NoError(t, disks.AttachDisk(testContext(t), vm.Disk{ID: serial, Path: path, ReadOnly: true}))
			r, err := m.run(t, request(t, []string{"/bin/true"}, layers("base", serial)), "")
			t.Log(r, err)
			require.NoError(t, disks.DetachDisk(testContext(t), serial))
			// Whatever became of it, the machine is as it was.
			require.Equal(t, "fine\n", m.sh(t, "echo fine", func(r *api.CreateRequest) { r.ID = "after" }))
		})
	}
}

func TestVsockCheck(t *testing.T) {
	m := useMachine(t)
	m.sh(t, "true") // the modules are loaded
	for range 2 {
		rep, err := m.VsockCheck(testContext(t))
		require.NoError(t, err)
		require.Positive(t, rep.CID)
		require.Equal(t, api.Version, rep.Ping.Version)
	}
}

func TestOutOfMemory(t *testing.T) {
	m := ownMachine(t, vm.Spec{Memory: 192 << 20})
	r, err := m.run(t, request(t, []string{"probe", "eat"}), "")
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 137, Signal: "KILL", OOMKilled: true}, r.exit)
	require.Equal(t, "alive\n", m.sh(t, "echo alive", func(r *api.CreateRequest) { r.ID = "after" }))
}

func TestPoweroff(t *testing.T) {
	m := ownMachine(t, vm.Spec{})
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "trap '' TERM; sleep 1000"})
	require.NoError(t, m.Create(ctx, req))
	_, err := m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	waiting := make(chan error, 1)
	go func() {
		_, err := m.Wait(ctx, api.WaitRequest{ID: req.ID})
		waiting <- err
	}()
	require.NoError(t, m.Poweroff(ctx))
	select {
	case <-m.inst.Done():
	case <-ctx.Done():
		t.Fatal("the machine runs on")
	}
	require.NoError(t, m.inst.Err(), "a clean power-off")
	if err := <-waiting; err != nil {
		require.ErrorIs(t, err, errs.ErrUnavailable)
	}
}

func TestManyLayers(t *testing.T) {
	m := useMachine(t)
	disks := m.inst.(vm.DiskAttacher)
	ctx := testContext(t)
	const count = 40 // more than fit into one value of the newer mount calls
	use := []string{"base"}
	for i := range count {
		serial := fmt.Sprint("many", i)
		path := filepath.Join(m.dir, serial)
		require.NoError(t, writeLayer(path, []file{{name: fmt.Sprint("layer", i), mode: 0o644}, {name: "top", mode: 0o644, body: serial}}))
		require.NoError(t, disks.AttachDisk(ctx, vm.Disk{ID: serial, Path: path, ReadOnly: true}))
		use = append(use, serial)
	}
	out := m.sh(t, "cat /top; ls -d /layer* | wc -l", layers(use...))
	require.Equal(t, fmt.Sprintf("many%d%d\n", count-1, count), out)
	for _, serial := range use[1:] {
		require.NoError(t, disks.DetachDisk(ctx, serial))
	}
}

func TestNothingIsLeftInTheGuest(t *testing.T) {
	m := useMachine(t)
	before := m.sh(t, "grep -c . /proc/mounts", func(r *api.CreateRequest) { r.ID = "before" })
	for i := range 10 {
		ctx, cancel := context.WithCancel(testContext(t))
		req := request(t, []string{"sleep", "1000"}, func(r *api.CreateRequest) { r.ID = fmt.Sprint("left", i) })
		go cancel()
		if err := m.Create(ctx, req); err == nil { // cancelled at some point, or not
			_, _ = m.Start(ctx, api.StartRequest{ID: req.ID})
		}
		cancel()
		if err := m.Remove(testContext(t), api.RemoveRequest{ID: req.ID, Force: true}); err != nil {
			require.ErrorIs(t, err, errs.ErrNotFound)
		}
		for {
			err := m.Create(testContext(t), req)
			if err == nil {
				break
			}
			// The guest may learn late that the first call has gone. A removal waits for a creation under way.
			require.ErrorIs(t, err, errs.ErrExists)
			_ = m.Remove(testContext(t), api.RemoveRequest{ID: req.ID, Force: true})
		}
		require.NoError(t, m.Remove(testContext(t), api.RemoveRequest{ID: req.ID}))
	}
	require.Equal(t, before, m.sh(t, "grep -c . /proc/mounts", func(r *api.CreateRequest) { r.ID = "afterwards" }))
}

// BenchmarkContainer measures a container from the call that creates it to its exit.
func BenchmarkContainer(b *testing.B) {
	m := useMachine(b)
	ctx := context.Background()
	for i := 0; b.Loop(); i++ {
		req := request(b, []string{"true"})
		req.ID = fmt.Sprint("bench", i, "-", os.Getpid())
		require.NoError(b, m.Create(ctx, req))
		_, err := m.Start(ctx, api.StartRequest{ID: req.ID})
		require.NoError(b, err)
		w, err := m.Wait(ctx, api.WaitRequest{ID: req.ID})
		require.NoError(b, err)
		require.Zero(b, w.Exit.Code)
		b.StopTimer()
		require.NoError(b, m.Remove(ctx, api.RemoveRequest{ID: req.ID}))
		b.StartTimer()
	}
}

// probed is a command, and what comes of it.
type probed struct {
	args []string
	out  string
	exit int
	err  error
}

// foreign is a program of the host's architecture in a guest of another one.
func foreign(arch string) probed {
	if arch != "arm64" {
		return probed{[]string{"true"}, "", 126, errs.ErrNoExecutable}
	}
	return probed{[]string{"true", "by", "name"}, "translate /bin/true by name\n", 0, nil}
}

// otherMachine boots a machine of another architecture than the host's. One for arm64 has a translator for amd64: the probe,
// which says what it is asked to run.
func otherMachine(t *testing.T, arch string) *machine {
	t.Helper()
	if arch != "arm64" {
		return ownMachine(t, vm.Spec{Arch: arch})
	}
	dir := t.TempDir()
	files, err := baseFiles(testContext(t), dir, arch)
	needs.Machine(t, err)
	probe := files[slices.IndexFunc(files, func(f file) bool { return f.name == "bin/probe" })]
	probe.name = "rosetta"
	disk := filepath.Join(dir, "disk")
	require.NoError(t, writeLayer(disk, []file{probe}))
	m := ownMachine(t, vm.Spec{
		Arch: arch, Name: noLayers, Disks: []vm.Disk{{ID: "translator", Path: disk, ReadOnly: true}},
		Cmdline: bootfs.RosettaParameter + "ext4:/dev/sda",
	})
	require.NoError(t, m.Settle(testContext(t), true))
	require.NoError(t, m.inst.(vm.DiskAttacher).AttachDisk(testContext(t), vm.Disk{ID: "base", Path: filepath.Join(m.dir, "base"), ReadOnly: true}))
	return m
}

func TestOtherArchitecture(t *testing.T) {
	arch := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	m := otherMachine(t, arch)
	for _, tc := range []probed{
		{[]string{"probe", "fds"}, "0 1 2 ", 0, nil},
		{[]string{"probe", "vsock"}, "answer: false <nil>\n", 0, nil},
		{[]string{"probe", "signals"}, "0\n", 0, nil},
		{[]string{"probe", "exit"}, "", 42, nil},
		{[]string{"nope"}, "", 127, errs.ErrNoCommand},
		foreign(arch),
	} {
		r, err := m.run(t, request(t, tc.args), "")
		require.ErrorIs(t, err, tc.err)
		require.Equal(t, tc.exit, r.exit.Code, r.stderr)
		require.Contains(t, r.stdout, tc.out)
	}
	prog, err := seccomp.Default(arch, nil)
	require.NoError(t, err)
	for _, init := range []bool{false, true} {
		r, err := m.run(t, request(t, []string{"probe", "calls"}, func(r *api.CreateRequest) { r.Process.Seccomp, r.Init = prog, init }), "")
		require.NoError(t, err)
		require.Equal(t, "mount EPERM\nunshare EPERM\nkeyctl EPERM\nclone3 ENOSYS\nvsock EPERM\nunix \n", r.stdout, r.stderr)
	}
	require.NoError(t, m.Poweroff(testContext(t)))
	<-m.inst.Done()
	require.NoError(t, m.inst.Err())
}
