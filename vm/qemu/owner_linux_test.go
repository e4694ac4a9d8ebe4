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

	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// ownerArg makes the test binary a program that owns machines: see owner.
const ownerArg = "-qemu-test-owner"

// owner starts a machine and tells about each step on stdout: "starting", "started PID" and "up". Then it waits to be
// killed.
func owner(args []string) {
	fmt.Println("starting")
	m, err := New(Config{}).Start(context.Background(), vm.Spec{Kernel: args[0], Initramfs: args[1]})
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
	self, err := os.Executable()
	require.NoError(t, err)
	for _, moment := range []string{"starting", "started", "up"} {
		t.Run(moment, func(t *testing.T) {
			cmd := exec.Command(self, ownerArg, spec.Kernel, spec.Initramfs)
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
				if fd, err := unix.PidfdOpen(pid, 0); err == nil {
					pidfds = append(pidfds, fd)
				}
			}
			if moment != "starting" {
				require.Len(t, pidfds, 1)
			}
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			for _, fd := range pidfds {
				awaitDeath(t, fd)
				unix.Close(fd)
			}
		})
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
	for step := range 12 {
		cmd := exec.Command(self, ownerArg, spec.Kernel, marked)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		kill := time.AfterFunc(time.Duration(step)*3*time.Millisecond, func() { cmd.Process.Kill() })
		require.Error(t, cmd.Wait())
		kill.Stop()
		for _, pid := range running(t, "-initrd\x00"+marked+"\x00") {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				awaitDeath(t, fd)
				unix.Close(fd)
			}
		}
		require.Empty(t, running(t, "-initrd\x00"+marked+"\x00"))
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
