package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout is far above what a test takes on a slow and busy machine.
const testTimeout = time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// program is the helper, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "arcbox-checkpoint")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "helper")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./testdata/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build the helper: %w: %s", err, out)
	}
	return path, err
})

// helper is a process to be saved, or one that has gone on.
type helper struct {
	cmd    *exec.Cmd
	conn   net.Conn
	lines  *bufio.Reader
	stderr bytes.Buffer
	ended  chan error
}

// given is how many descriptors the helper has from its parent.
const given = 4

// start starts a program with a socket as its descriptor 3, and more files after it.
func start(t testing.TB, path string, args []string, more ...*os.File) *helper {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	require.NoError(t, err)
	h := &helper{cmd: exec.Command(path, args...), conn: conn, lines: bufio.NewReader(conn), ended: make(chan error, 1)}
	h.cmd.ExtraFiles = append([]*os.File{theirs}, more...)
	h.cmd.Stderr = &h.stderr
	h.cmd.Env = []string{"GODEBUG=containermaxprocs=0"} // without which the runtime keeps a file of its cgroup open
	pidfd := -1
	h.cmd.SysProcAttr = &unix.SysProcAttr{PidFD: &pidfd}
	require.NoError(t, h.cmd.Start())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				break
			}
		}
		unix.Close(pidfd)
		h.ended <- h.cmd.Wait()
	}()
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		<-done
		conn.Close()
		if t.Failed() {
			t.Logf("%s: %s", path, h.stderr.String())
		}
	})
	require.NoError(t, conn.SetDeadline(time.Now().Add(testTimeout)))
	return h
}

// ask sends a command and returns the answer.
func (h *helper) ask(t testing.TB, command string) string {
	t.Helper()
	_, err := io.WriteString(h.conn, command+"\n")
	require.NoError(t, err)
	line, err := h.lines.ReadString('\n')
	if err != nil {
		select {
		case end := <-h.ended:
			t.Fatalf("%s: it ended: %v: %s", command, end, h.stderr.String())
		case <-time.After(time.Second):
		}
	}
	require.NoError(t, err, command)
	return strings.TrimSpace(line)
}

// kill ends the process and waits for that.
func (h *helper) kill(t testing.TB) {
	t.Helper()
	require.NoError(t, h.cmd.Process.Kill())
	<-h.ended
	h.ended <- nil
}

// files are what a helper maps.
type files struct{ dir, memory, private string }

func newFiles(t testing.TB) files {
	t.Helper()
	f := files{dir: t.TempDir()}
	f.memory, f.private = filepath.Join(f.dir, "memory"), filepath.Join(f.dir, "private")
	for _, path := range []string{f.memory, f.private} {
		require.NoError(t, os.WriteFile(path, append([]byte(filepath.Base(path)), make([]byte, 4*4096-len(filepath.Base(path)))...), 0o600))
	}
	return f
}

// helperOf starts a helper that maps the files.
func (f files) helper(t testing.TB) *helper {
	t.Helper()
	path, err := program()
	require.NoError(t, err)
	h := start(t, path, []string{f.memory, f.private})
	require.Equal(t, "ok", h.ask(t, "remember all of it"))
	return h
}

// save saves a helper.
func (f files) save(t testing.TB, h *helper) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, Save(testContext(t), h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory}))
	return image
}

// goOn starts a process that goes on from an image.
func (f files) goOn(t testing.TB, image, name string, mode Mode) *helper {
	t.Helper()
	program, err := os.Open(image)
	require.NoError(t, err)
	defer program.Close()
	memory, err := os.OpenFile(f.memory, os.O_RDWR, 0)
	require.NoError(t, err)
	defer memory.Close()
	for {
		h := start(t, image, Args(name, mode), program, memory)
		if _, err := io.WriteString(h.conn, "name\n"); err == nil {
			if line, err := h.lines.ReadString('\n'); err == nil {
				require.Equal(t, name, strings.TrimSpace(line))
				return h
			}
		}
		var exit *exec.ExitError
		end := <-h.ended
		h.ended <- nil
		require.True(t, errors.As(end, &exit), "%v", end)
		require.Equal(t, Collision, exit.ExitCode(), h.stderr.String())
	}
}

// check has a process show that all of it is there.
func (h *helper) check(t testing.TB) {
	t.Helper()
	for command, want := range map[string]string{
		"file": "private written", "threads": "true", "timer": "true", "signal": "user defined signal 1", "grow x": "10485760", "socket": "<nil>",
	} {
		require.Equal(t, want, h.ask(t, command), command)
	}
}

func TestProcessesGoOn(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	h.check(t)
	require.Equal(t, "ok", h.ask(t, "remember all of it"))
	require.Equal(t, "ok", h.ask(t, "poke before"))
	image := f.save(t, h)
	require.NoError(t, Check(image))
	h.check(t)
	require.Equal(t, "before", h.ask(t, "peek"), "what was saved goes on")
	h.kill(t)

	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			name := fmt.Sprint("child", n)
			h := f.goOn(t, image, name, Mode{})
			require.Equal(t, "all of it", h.ask(t, "recall"))
			require.Equal(t, "before", h.ask(t, "peek"))
			require.Equal(t, "ok", h.ask(t, "poke "+name))
			require.Equal(t, "ok", h.ask(t, "remember "+name))
			h.check(t)
			require.Equal(t, name, h.ask(t, "peek"))
		})
	}
	wg.Wait()
	b, err := os.ReadFile(f.memory)
	require.NoError(t, err)
	require.Equal(t, "before", string(b[:6]), "a private memory changes no file")

	h = f.goOn(t, image, "shared", Mode{Shared: true})
	h.check(t)
	require.Equal(t, "ok", h.ask(t, "poke after"))
	b, err = os.ReadFile(f.memory)
	require.NoError(t, err)
	require.Equal(t, "after", string(b[:5]))
}

// A process that has gone on is a process like others.
func TestProcessThatHasGoneOnIsSaved(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	for range 3 {
		image := f.save(t, h)
		h.kill(t)
		h = f.goOn(t, image, "next", Mode{Shared: true})
		require.Equal(t, "all of it", h.ask(t, "recall"))
		h.check(t)
		require.Equal(t, "ok", h.ask(t, "remember all of it"))
	}
}

// bigPages is how many pages the helper writes when it is told to touch its memory.
const bigPages = 1024

func TestPreload(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	image := f.save(t, h)
	h.kill(t)

	count := func(h *helper) (pages uint64) {
		u, err := Look(h.cmd.Process.Pid)
		require.NoError(t, err)
		for _, r := range u.written {
			pages += (r.End - r.Start) / pageSize
		}
		return pages
	}
	h = f.goOn(t, image, "first", Mode{})
	fresh := count(h)
	require.Less(t, fresh, uint64(bigPages))
	require.Equal(t, "ok", h.ask(t, "touch"))
	used, err := Look(h.cmd.Process.Pid)
	require.NoError(t, err)
	require.Greater(t, count(h), uint64(bigPages))
	require.ErrorIs(t, Preload(image, used, used), unix.ETXTBSY)
	h.kill(t)

	for _, tc := range []struct {
		name        string
		lazy, eager Used
		mode        Mode
		has         bool // from the start what the first one has written
	}{
		{"lazy", used, Used{}, Mode{}, true},
		{"lazy without", Used{}, used, Mode{}, false},
		{"eager", Used{}, used, Mode{Eager: true}, true},
		{"eager without", used, Used{}, Mode{Eager: true}, false},
	} {
		require.NoError(t, Preload(image, tc.lazy, tc.eager))
		h = f.goOn(t, image, tc.name, tc.mode)
		require.Equal(t, tc.has, count(h) > bigPages, tc.name)
		h.check(t)
		h.kill(t)
	}
}

func TestFilter(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	const eacces = 0x0005000d
	// Load the number of the call; socket is EACCES, all else is allowed.
	filter := []byte{
		0x20, 0, 0, 0, 0, 0, 0, 0,
		0x15, 0, 0, 1, unix.SYS_SOCKET, 0, 0, 0,
		0x06, 0, 0, 0, eacces & 0xff, 0, 5, 0,
		0x06, 0, 0, 0, 0, 0, 0xff, 0x7f,
	}
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, Save(testContext(t), h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory, Filter: filter}))
	require.Equal(t, "<nil>", h.ask(t, "socket"))
	h = f.goOn(t, image, "confined", Mode{})
	require.Equal(t, "permission denied", h.ask(t, "socket"))
	require.Equal(t, "true", h.ask(t, "threads"))
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", h.cmd.Process.Pid))
	require.NoError(t, err)
	require.Greater(t, len(tasks), 4)
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		require.NoError(t, err)
		require.Contains(t, string(status), "Seccomp_filters:\t2\n", task)
		require.Contains(t, string(status), "NoNewPrivs:\t1\n", task)
	}
}

func TestWhatCannotBeSaved(t *testing.T) {
	for _, what := range []string{"file", "pipe", "socket", "timerfd", "shared memory", "memory without end"} {
		t.Run(what, func(t *testing.T) {
			f := newFiles(t)
			h := f.helper(t)
			require.Equal(t, "ok", h.ask(t, "open "+what))
			image := filepath.Join(t.TempDir(), "image")
			err := Save(testContext(t), h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory})
			require.ErrorIs(t, err, errs.ErrUnsupported)
			require.NoFileExists(t, image)
			h.check(t)
		})
	}
	t.Run("no memory", func(t *testing.T) {
		f := newFiles(t)
		h := f.helper(t)
		require.ErrorIs(t, Save(testContext(t), h.cmd.Process.Pid, filepath.Join(t.TempDir(), "image"), Spec{Given: given}), errs.ErrUnsupported)
		h.check(t)
	})
}

// Other kinds of descriptors than the helper has from the start.
func TestDescriptorsAreOpenedAgain(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	for _, what := range []string{"semaphore", "random"} {
		require.Equal(t, "ok", h.ask(t, "open "+what))
	}
	list := func(h *helper) (all []string) {
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.cmd.Process.Pid))
		require.NoError(t, err)
		for _, name := range names {
			to, err := os.Readlink(name)
			require.NoError(t, err)
			if own, err := os.Readlink("/proc/self/fd/" + filepath.Base(name)); err == nil && own == to && filepath.Base(name) > "2" {
				continue // every child of this process has it
			}
			kind, _, _ := strings.Cut(to, ":[") // without the number of a socket or pipe
			all = append(all, filepath.Base(name)+" "+kind)
		}
		return all
	}
	before := list(h)
	image := f.save(t, h)
	require.Equal(t, before, list(f.goOn(t, image, "again", Mode{})))
}

func TestBusyProcessIsNotSaved(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	require.Equal(t, "ok", h.ask(t, "spin"))
	ctx, cancel := context.WithTimeout(testContext(t), 200*time.Millisecond)
	defer cancel()
	image := filepath.Join(t.TempDir(), "image")
	require.ErrorIs(t, Save(ctx, h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory}), context.DeadlineExceeded)
	require.NoFileExists(t, image)
	h.check(t)
}

func TestProcessThatHasEndedIsNotSaved(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	pid := h.cmd.Process.Pid
	h.kill(t)
	image := filepath.Join(t.TempDir(), "image")
	require.Error(t, Save(testContext(t), pid, image, Spec{Given: given, Memory: f.memory}))
	require.NoFileExists(t, image)

	// In the middle of it, at any moment.
	for range 5 {
		h := f.helper(t)
		go h.cmd.Process.Kill()
		if err := Save(testContext(t), h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory}); err == nil {
			require.NoError(t, os.Remove(image))
		}
		require.NoFileExists(t, image)
		require.EqualError(t, <-h.ended, "signal: killed")
		h.ended <- nil
	}
}

func TestImageIsThereAlready(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	image := f.save(t, h)
	require.ErrorIs(t, Save(testContext(t), h.cmd.Process.Pid, image, Spec{Given: given, Memory: f.memory}), os.ErrExist)
	require.NoError(t, Check(image))
}

func TestCheck(t *testing.T) {
	f := newFiles(t)
	h := f.helper(t)
	image := f.save(t, h)
	require.NoError(t, Check(image))
	require.ErrorIs(t, Check(filepath.Join(f.dir, "nothing")), os.ErrNotExist)
	require.ErrorIs(t, Check(f.memory), errs.ErrCorrupt)

	whole, err := os.ReadFile(image)
	require.NoError(t, err)
	other := filepath.Join(f.dir, "other")
	for _, n := range []int{0, 1, len(trailerMagic) + 4, len(whole) / 2, len(whole) - 1} {
		require.NoError(t, os.WriteFile(other, whole[:n], 0o700))
		require.ErrorIs(t, Check(other), errs.ErrCorrupt, n)
	}
	boot, err := bootID()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(other, bytes.ReplaceAll(whole, []byte(boot), []byte(strings.Repeat("0", len(boot)))), 0o700))
	require.ErrorIs(t, Check(other), errs.ErrUnsupported)
	require.ErrorContains(t, Check(other), "the host was started anew")

	require.NoError(t, os.Chtimes(f.private, time.Time{}, time.Now().Add(-time.Hour)))
	require.ErrorIs(t, Check(image), errs.ErrUnsupported)
	require.ErrorContains(t, Check(image), f.private)
	require.NoError(t, os.Remove(f.private))
	require.ErrorIs(t, Check(image), errs.ErrUnsupported)
}
