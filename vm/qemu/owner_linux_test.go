package qemu

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// ownerArg makes the test binary a program that owns machines: see owner.
const ownerArg = "-qemu-test-owner"

// owner starts a machine and tells about each step on stdout: "starting", "started PID" and "up". Then it waits to be
// killed.
func owner(args []string) {
	fmt.Println("starting")
	d := New(Config{})
	d.spawn = spawners()[args[2]]
	spec := vm.Spec{Kernel: args[0], Initramfs: args[1]}
	if len(args) > 3 { // one that goes on
		spec.MemoryFile, spec.State = args[3], args[4]
	}
	m, err := d.Start(context.Background(), spec)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("started", m.(*Instance).proc.cmd.Process.Pid)
	c, err := m.Dial(context.Background(), guest.PortEcho)
	if err != nil {
		fmt.Println(err)
		return
	}
	c.Write([]byte("x"))
	c.Read(make([]byte, 1))
	fmt.Println("up")
	<-m.Done()
}

// spawners are the ways in which QEMU is tied to its owner's life.
func spawners() map[string]spawner {
	return map[string]spawner{"by the kernel": startProcess, "by a watch": startWatched}
}

// children returns the processes whose parent is pid.
func children(t *testing.T, pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	var all []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(word)
			require.NoError(t, err)
			all = append(all, n)
		}
	}
	return all
}

// awaitDeath waits until the process behind a pidfd has ended.
func awaitDeath(t *testing.T, pidfd int) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(testTimeout); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 1, n, "QEMU outlived its owner")
		return
	}
}

func TestQEMUDiesWithItsOwner(t *testing.T) {
	spec := testSpec(t)
	t.Run("from an image", func(t *testing.T) {
		spec := savedMachine(t, spec)
		for _, moment := range []string{"starting", "started", "up"} {
			killOwner(t, spec, "by the kernel", moment)
		}
	})
	for way := range spawners() {
		for _, moment := range []string{"starting", "started", "up"} {
			t.Run(way+" when "+moment, func(t *testing.T) { killOwner(t, spec, way, moment) })
		}
	}
}

// killOwner kills the owner of a machine at the moment.
func killOwner(t *testing.T, spec vm.Spec, way, moment string) {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, ownerArg, spec.Kernel, spec.Initramfs, way)
	if spec.State != "" {
		cmd.Args = append(cmd.Args, spec.MemoryFile, spec.State)
	}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	sc := bufio.NewScanner(out)
	for sc.Scan() && !strings.HasPrefix(sc.Text(), moment) {
	}
	require.True(t, strings.HasPrefix(sc.Text(), moment), sc.Text())
	// Of a QEMU that lives there must be no more soon; at the first moment there may be none yet.
	var pidfds []int
	for _, pid := range children(t, cmd.Process.Pid) {
		for _, pid := range append(children(t, pid), pid) { // the watch too
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				pidfds = append(pidfds, fd)
			}
		}
	}
	if moment != "starting" {
		require.Len(t, pidfds, map[string]int{"by the kernel": 1, "by a watch": 2}[way])
	}
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	for _, fd := range pidfds {
		awaitDeath(t, fd)
		unix.Close(fd)
	}
}

// TestKilledAtAnyMoment kills the owner at moments that sweep over its start, and looks for QEMUs by a name that only
// they have.
func TestKilledAtAnyMoment(t *testing.T) {
	spec := testSpec(t)
	self, err := os.Executable()
	require.NoError(t, err)
	marked := filepath.Join(t.TempDir(), "initramfs")
	require.NoError(t, os.Symlink(spec.Initramfs, marked))
	for step := range 24 {
		way := []string{"by the kernel", "by a watch"}[step%2]
		cmd := exec.Command(self, ownerArg, spec.Kernel, marked, way)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		kill := time.AfterFunc(time.Duration(step)*1500*time.Microsecond, func() { cmd.Process.Kill() })
		require.Error(t, cmd.Wait())
		kill.Stop()
		for _, pid := range running(t, "-initrd\x00"+marked+"\x00") {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				awaitDeath(t, fd)
				unix.Close(fd)
			}
		}
		require.Empty(t, running(t, "-initrd\x00"+marked+"\x00"), way)
	}
}

// TestWatched starts programs under a watch: they have their files and their arguments, their end is told as it was, and
// the watch ends with them.
func TestWatched(t *testing.T) {
	for name, c := range map[string]struct {
		script, stderr, exit string
	}{
		"exits":         {"echo \"$1\" >&2; exit 7", "two words", "exit status 7"},
		"well":          {"cat <&3 >&2", "a file", "exit status 0"},
		"killed":        {"kill -9 $$", "", "signal: killed"},
		"keeps nothing": {"ls -l /proc/self/fd/9 /proc/self/fd/0 >&2", "/dev/null", "exit status 2"},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			_, err = w.WriteString("a file")
			require.NoError(t, err)
			require.NoError(t, w.Close())
			stderr, marked := &tailBuffer{limit: 1 << 10}, t.TempDir()
			p, err := startWatched("/bin/sh", []string{"-c", c.script, "sh", "two words", marked}, stderr, []*os.File{r})
			require.NoError(t, err)
			<-p.done
			require.EqualError(t, p.end(), c.exit)
			require.Contains(t, stderr.String(), c.stderr)
			require.Empty(t, running(t, marked))
		})
	}
	_, err := startWatched("/bin/sh", nil, nil, make([]*os.File, 7))
	require.ErrorIs(t, err, errs.ErrUnsupported)
	p, err := startWatched("/no/such/program", nil, &tailBuffer{limit: 1}, nil)
	require.NoError(t, err)
	<-p.done
	require.Error(t, p.err)
}

// TestMachineUnderAWatch runs machines as on a system that does not end a child with its parent.
func TestMachineUnderAWatch(t *testing.T) {
	d := New(Config{Logger: testLogger(t)})
	d.spawn = startWatched
	for _, end := range []func(i *Instance){
		func(i *Instance) { require.NoError(t, i.Close()) },
		func(i *Instance) {
			require.NoError(t, i.proc.cmd.Process.Kill())
			<-i.Done()
			require.ErrorContains(t, i.Err(), "signal: killed")
		},
	} {
		inst, err := d.Start(testContext(t), testSpec(t))
		require.NoError(t, err)
		defer inst.Close()
		c, err := inst.Dial(testContext(t), guest.PortEcho)
		require.NoError(t, err)
		defer c.Close()
		end(inst.(*Instance))
		require.NoError(t, inst.Close())
		require.Empty(t, children(t, os.Getpid()))
	}
}

// running returns the processes whose command line contains what. A process that has ended has an empty one.
func running(t *testing.T, what string) []int {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var all []int
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), what) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			require.NoError(t, err)
			all = append(all, pid)
		}
	}
	return all
}
