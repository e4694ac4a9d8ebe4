package proc

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run forks p and returns its failure and its end.
func run(t *testing.T, p *Program, spec ForkSpec) (unix.WaitStatus, error) {
	t.Helper()
	r := NewReaper()
	defer r.Close()
	report, reportW, err := os.Pipe()
	require.NoError(t, err)
	defer report.Close()
	spec.Cgroup, spec.Report = -1, int(reportW.Fd())
	c, err := r.Start(func() (int, error) { return p.Fork(spec) })
	reportW.Close()
	require.NoError(t, err)
	b, err := io.ReadAll(report)
	require.NoError(t, err)
	<-c.Done()
	failure := p.Decode(b)
	p.Close()
	return c.Status(), failure
}

func TestProgramExecutesACommand(t *testing.T) {
	out, w, err := os.Pipe()
	require.NoError(t, err)
	p := NewProgram()
	p.Call("stdout", unix.SYS_DUP3, w.Fd(), 1, 0)
	p.Call("mask", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	p.Exec("/nonexistent/sh", p.Strs([]string{"sh"}), p.Strs(nil))
	p.Exec("/bin/sh", p.Strs([]string{"sh", "-c", `echo "$A" "$1" $$; exit 7`, "sh", "x y"}), p.Strs([]string{"A=b c"}))
	status, failure := run(t, p, ForkSpec{Flags: unix.CLONE_NEWPID})
	w.Close()
	require.NoError(t, failure)
	require.Equal(t, 7, status.ExitStatus())
	b, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Equal(t, "b c x y 1\n", string(b))
}

func TestProgramReportsTheStepThatFailed(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/plain", []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(dir+"/garbage", []byte("\x00\x01garbage"), 0o755))
	nothing := func(p *Program) (uintptr, uintptr) { return p.Strs([]string{"x"}), p.Strs(nil) }
	for _, tc := range []struct {
		name  string
		build func(p *Program)
		want  Failure
	}{
		{"a call", func(p *Program) {
			p.Try("ignored", unix.SYS_CLOSE, 9999)
			p.Call("accepted", unix.SYS_CLOSE, 9999).Accept(unix.EBADF)
			p.Call("close nothing", unix.SYS_CLOSE, 9999)
			p.Call("never", unix.SYS_EXIT_GROUP, 3)
		}, Failure{"close nothing", unix.EBADF, false}},
		{"another result", func(p *Program) {
			fd := p.Call("own number", unix.SYS_GETPID).Save()
			p.Try("signal nobody", unix.SYS_KILL, 0, 0).Arg(0, fd)
			p.Call("umask", unix.SYS_UMASK, 0o123)
			p.Call("umask again", unix.SYS_UMASK, 0o22).Want(0o123)
			p.Call("other umask", unix.SYS_UMASK, 0o22).Want(0o77)
		}, Failure{"other umask", unix.ECANCELED, false}},
		{"nothing to execute", func(p *Program) { p.Call("set umask", unix.SYS_UMASK, 0o22) }, Failure{"set umask", unix.ENOENT, true}},
		{"no command", func(p *Program) {
			argv, envp := nothing(p)
			p.Exec(dir+"/none", argv, envp)
			p.Exec(dir+"/plain/none", argv, envp)
		}, Failure{"execute " + dir + "/plain/none", unix.ENOENT, true}},
		{"not executable wins over not found", func(p *Program) {
			argv, envp := nothing(p)
			p.Exec(dir+"/plain", argv, envp)
			p.Exec(dir+"/none", argv, envp)
		}, Failure{"execute " + dir + "/none", unix.EACCES, true}},
		{"a directory", func(p *Program) {
			argv, envp := nothing(p)
			p.Exec(dir, argv, envp)
		}, Failure{"execute " + dir, unix.EACCES, true}},
		{"bad format ends the search", func(p *Program) {
			argv, envp := nothing(p)
			p.Exec(dir+"/garbage", argv, envp)
			p.Exec("/bin/true", argv, envp)
		}, Failure{"execute " + dir + "/garbage", unix.ENOEXEC, true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, own := range []bool{false, true} {
				p := NewProgram()
				tc.build(p)
				status, failure := run(t, p, ForkSpec{OwnMemory: own})
				var got *Failure
				require.ErrorAs(t, failure, &got)
				require.Equal(t, tc.want, *got)
				require.ErrorIs(t, failure, tc.want.Errno)
				require.Equal(t, 127, status.ExitStatus())
			}
		})
	}
}

func TestRegistersCarryResults(t *testing.T) {
	path := t.TempDir() + "/out"
	p := NewProgram()
	fd := p.Call("open", unix.SYS_OPENAT, ^uintptr(99), p.Str(path), unix.O_CREAT|unix.O_WRONLY, 0o600).Save()
	p.Call("write", unix.SYS_WRITE, 0, p.Str("hello"), 5).Arg(0, fd)
	p.Call("exit", unix.SYS_EXIT_GROUP, 5)
	status, failure := run(t, p, ForkSpec{})
	require.NoError(t, failure)
	require.Equal(t, 5, status.ExitStatus())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
}

// TestMemoryOfAChild has the parent collect garbage and use its memory while children wait in it.
func TestMemoryOfAChild(t *testing.T) {
	for _, own := range []bool{false, true} {
		r := NewReaper()
		waitR, waitW, err := os.Pipe()
		require.NoError(t, err)
		var children []*Child
		var programs []*Program
		var names [][]byte
		for i := range 20 {
			p := NewProgram()
			name := make([]byte, unsafe.Sizeof(unix.Utsname{}))
			p.Call("name", unix.SYS_UNAME, p.Bytes(name))
			p.Call("wait", unix.SYS_READ, waitR.Fd(), p.Bytes(make([]byte, 1)), 1).Want(1)
			p.Call("exit", unix.SYS_EXIT_GROUP, uintptr(i))
			c, err := r.Start(func() (int, error) { return p.Fork(ForkSpec{Cgroup: -1, Report: -1, OwnMemory: own}) })
			require.NoError(t, err)
			children, programs, names = append(children, c), append(programs, p), append(names, name)
			runtime.GC()
		}
		for range 50 {
			require.Len(t, bytes.Repeat([]byte("x"), 1<<20), 1<<20)
		}
		runtime.GC()
		_, err = waitW.Write(make([]byte, len(children)))
		require.NoError(t, err)
		for i, c := range children {
			<-c.Done()
			require.Equal(t, i, c.Status().ExitStatus())
			require.Equal(t, own, names[i][0] == 0, "what the child has read")
			programs[i].Close()
		}
		waitR.Close()
		waitW.Close()
		r.Close()
	}
}

func TestSignalNeverReachesAChildThatEnded(t *testing.T) {
	r := NewReaper()
	defer r.Close()
	p := NewProgram()
	defer p.Close()
	p.Call("pause", unix.SYS_PPOLL, 0, 0, 0, 0, 0)
	c, err := r.Start(func() (int, error) { return p.Fork(ForkSpec{Cgroup: -1, Report: -1}) })
	require.NoError(t, err)
	require.NoError(t, c.Signal(unix.SIGKILL))
	<-c.Done()
	require.Equal(t, unix.SIGKILL, c.Status().Signal())
	require.ErrorIs(t, c.Signal(unix.SIGKILL), unix.ESRCH)
}

func TestReaperHammer(t *testing.T) {
	r := NewReaper()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 25 {
				code := (g*25 + i) % 100
				p := NewProgram()
				p.Call("exit", unix.SYS_EXIT_GROUP, uintptr(code))
				c, err := r.Start(func() (int, error) { return p.Fork(ForkSpec{Cgroup: -1, Report: -1}) })
				if err != nil {
					t.Error(err)
					return
				}
				<-c.Done()
				p.Close()
				if c.Status().ExitStatus() != code {
					t.Errorf("status %v, not %d", c.Status(), code)
				}
			}
		})
	}
	wg.Wait()
	r.Close()
	r.Close()
	_, err := r.Start(func() (int, error) { panic("not called") })
	require.Error(t, err)
}

func TestOrphansAreReaped(t *testing.T) {
	// The child makes a grandchild that ends after it, and which this process inherits as a subreaper.
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	hold, w, err := os.Pipe()
	require.NoError(t, err)
	r := NewReaper()
	p := NewProgram()
	p.Call("mask", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	p.Call("stdin", unix.SYS_DUP3, hold.Fd(), 0, 0)
	p.Call("close", unix.SYS_CLOSE_RANGE, 3, ^uintptr(0)>>32, 0)
	p.Exec("/bin/sh", p.Strs([]string{"sh", "-c", "(read x) & exit 0"}), p.Strs(nil))
	c, err := r.Start(func() (int, error) { return p.Fork(ForkSpec{Cgroup: -1, Report: -1}) })
	require.NoError(t, err)
	<-c.Done()
	p.Close()
	w.Close()
	hold.Close()
	r.Close() // returns only when the orphan was reaped too
	err = unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG, nil)
	require.ErrorIs(t, err, syscall.ECHILD)
}
