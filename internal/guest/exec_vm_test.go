package guest_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// idle starts a container that does nothing until it is removed.
func (m *machine) idle(t testing.TB, specs ...spec) string {
	t.Helper()
	req := request(t, []string{"sleep", "1000000"}, specs...)
	m.create(t, req)
	_, err := m.Start(testContext(t), api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	return req.ID
}

// execSpec changes the request of an exec.
type execSpec func(*api.ExecRequest)

func asUser(u string) execSpec { return func(r *api.ExecRequest) { r.Process.User = u } }

// ids makes names of execs.
type ids struct {
	mu sync.Mutex
	n  int
}

func (i *ids) next(of string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
	return fmt.Sprintf("%s-%d", of, i.n)
}

// execs starts processes in one container.
type execs struct {
	m   *machine
	id  string
	ids ids
}

func (e *execs) request(args []string, specs ...execSpec) api.ExecRequest {
	req := api.ExecRequest{ID: e.id, ExecID: e.ids.next(e.id), Process: api.Process{Args: args}}
	for _, s := range specs {
		s(&req)
	}
	return req
}

func (e *execs) run(t testing.TB, stdin string, req api.ExecRequest) (result, error) {
	t.Helper()
	ctx := testContext(t)
	var stdout, stderr bytes.Buffer
	req.Process.Stdin = stdin != ""
	p, err := e.m.Exec(ctx, req, &stdout, &stderr)
	if err != nil {
		return result{}, err
	}
	defer p.Close()
	if stdin != "" {
		_, err := io.WriteString(p.Stdin(), stdin)
		require.NoError(t, err)
		require.NoError(t, p.Stdin().Close())
	}
	exit, err := p.Wait(ctx)
	return result{stdout.String(), stderr.String(), exit}, err
}

func (e *execs) sh(t testing.TB, script string, specs ...execSpec) string {
	t.Helper()
	r, err := e.run(t, "", e.request([]string{"sh", "-c", script}, specs...))
	require.NoError(t, err)
	require.Equal(t, api.Exit{}, r.exit, r.stderr)
	require.Empty(t, r.stderr)
	return r.stdout
}

func TestExecIsInTheContainer(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t, layers("base", "users"), func(r *api.CreateRequest) { r.Hostname = "box" })}
	require.Equal(t, `box
/
uid=0(root) gid=0(root) groups=0(root),10(wheel)
HOME=/root
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PWD=/
SHLVL=1
0022
1024
sleep
`, e.sh(t, "hostname; pwd; id; env | sort; umask; ulimit -n; cat /proc/1/comm"))
	for _, ns := range strings.Fields("cgroup ipc mnt net pid uts") {
		link := "readlink /proc/%s/ns/" + ns
		require.Equal(t, e.sh(t, fmt.Sprintf(link, "1")), e.sh(t, fmt.Sprintf(link, "self")), ns)
	}
	r, err := e.run(t, "", e.request([]string{"probe", "fds"}))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(r.stdout, "0 1 2 "), r.stdout)
	require.Equal(t, "1000 1001 /home/app /tmp/x\n", e.sh(t, "echo $(id -u) $(id -g) $HOME $(pwd)", asUser("app"),
		func(r *api.ExecRequest) { r.Process.Cwd = "/tmp/x" }))
	require.Equal(t, "v\n", e.sh(t, "echo $A", func(r *api.ExecRequest) { r.Process.Env = []string{"A=v"} }))
	e.sh(t, "echo text > /file")
	require.Equal(t, "text\n", e.sh(t, "cat /file"))
	r, err = e.run(t, "", e.request([]string{"probe", "caps"}))
	require.NoError(t, err)
	require.Contains(t, r.stdout, "CapEff:\t00000000a80425fb")
	r, err = e.run(t, "", e.request([]string{"probe", "caps"}, func(r *api.ExecRequest) { r.Privileged = true }))
	require.NoError(t, err)
	require.Contains(t, r.stdout, "CapEff:\t000001ffffffffff")
	r, err = e.run(t, "", e.request([]string{"probe", "signals"}))
	require.NoError(t, err)
	require.Equal(t, "0\n", r.stdout)
}

func TestExecExits(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	for name, tc := range map[string]struct {
		args []string
		want api.Exit
		err  error
	}{
		"zero":           {args: []string{"true"}},
		"code":           {args: []string{"probe", "exit"}, want: api.Exit{Code: 42}},
		"signal":         {args: []string{"sh", "-c", "kill -9 $$"}, want: api.Exit{Code: 137, Signal: "KILL"}},
		"no command":     {args: []string{"nope"}, err: errs.ErrNoCommand},
		"not executable": {args: []string{"plain"}, err: errs.ErrNoExecutable},
		"a directory":    {args: []string{"/bin"}, err: errs.ErrNoExecutable},
		"agent's own":    {args: []string{"self"}, want: api.Exit{Code: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			req := e.request(tc.args)
			r, err := e.run(t, "", req)
			if tc.err != nil {
				require.ErrorIs(t, err, tc.err)
				require.ErrorContains(t, err, tc.args[0])
				_, err = m.ExecInspect(testContext(t), api.ExecInspectRequest{ExecID: req.ExecID})
				require.ErrorIs(t, err, errs.ErrNotFound)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, r.exit)
			rep, err := m.ExecInspect(testContext(t), api.ExecInspectRequest{ExecID: req.ExecID})
			require.NoError(t, err)
			require.Equal(t, api.ExecInspectReply{ID: e.id, PID: rep.PID, Exit: tc.want}, rep)
			require.Positive(t, rep.PID)
			_, err = m.ExecInspect(testContext(t), api.ExecInspectRequest{ExecID: req.ExecID, Signal: "TERM"})
			require.ErrorIs(t, err, errs.ErrConflict)
		})
	}
	for name, change := range map[string]execSpec{
		"file of the agent": func(r *api.ExecRequest) { r.Process.Cwd = "/proc/self/fd/4" },
		"unknown user":      asUser("nobody"),
		"capability":        func(r *api.ExecRequest) { r.Process.Capabilities = []string{"CAP_FLY"} },
		"no arguments":      func(r *api.ExecRequest) { r.Process.Args = nil },
		"bad id":            func(r *api.ExecRequest) { r.ExecID = "../x" },
	} {
		_, err := e.run(t, "", e.request([]string{"true"}, change))
		require.Error(t, err, name)
	}
	_, err := e.run(t, "", api.ExecRequest{ID: "none", ExecID: "x", Process: api.Process{Args: []string{"true"}}})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestExecStreams(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	r, err := e.run(t, strings.Repeat("0123456789", 100_000), e.request([]string{"md5sum"}))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x  -\n", md5.Sum([]byte(strings.Repeat("0123456789", 100_000)))), r.stdout)
	r, err = e.run(t, "", e.request([]string{"sh", "-c", "head -c 300000 /dev/zero; head -c 100000 /dev/zero >&2"}))
	require.NoError(t, err)
	require.Equal(t, []int{300000, 100000}, []int{len(r.stdout), len(r.stderr)})
}

func TestExecTerminal(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	out := newLines()
	req := e.request([]string{"sh", "-c", "tty; stty size; read x; stty size; exit 3"}, func(r *api.ExecRequest) {
		r.Process.TTY, r.Process.Stdin, r.Process.Size = true, true, api.Size{Rows: 30, Cols: 100}
	})
	p, err := m.Exec(ctx, req, out, nil)
	require.NoError(t, err)
	defer p.Close()
	out.await(t, "/dev/pts/0\r\n30 100\r\n")
	_, err = m.ExecInspect(ctx, api.ExecInspectRequest{ExecID: req.ExecID, Size: api.Size{Rows: 7, Cols: 8}})
	require.NoError(t, err)
	io.WriteString(p.Stdin(), "\n")
	out.await(t, "7 8\r\n")
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
}

// A process that has left its session and its parent is killed too when the stream is dropped.
func TestDroppedExecIsKilled(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	out := newLines()
	req := e.request([]string{"sh", "-c", "(sleep 98765 &) ; sleep 98765 & echo up; wait"})
	p, err := m.Exec(ctx, req, out, nil)
	require.NoError(t, err)
	out.await(t, "up")
	p.Close()
	rep, err := m.ExecInspect(ctx, api.ExecInspectRequest{ExecID: req.ExecID, Wait: true})
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 137, Signal: "KILL"}, rep.Exit)
	require.Equal(t, "0\n", e.sh(t, "ps | grep -c '[9]8765' || true"))
}

// One whose input is stuck, because it does not read, is killed too.
func TestDroppedExecThatDoesNotReadIsKilled(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	req := e.request([]string{"sleep", "98765"}, func(r *api.ExecRequest) { r.Process.Stdin = true })
	p, err := m.Exec(ctx, req, nil, nil)
	require.NoError(t, err)
	stuck := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 400 { // more than all queues take
			if i == 20 {
				close(stuck)
			}
			if _, err := p.Stdin().Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	<-stuck
	p.Close()
	wg.Wait()
	rep, err := m.ExecInspect(ctx, api.ExecInspectRequest{ExecID: req.ExecID, Wait: true})
	require.NoError(t, err)
	require.Equal(t, "KILL", rep.Exit.Signal)
}

func TestLimitsApplyToExecs(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	e := &execs{m: m, id: m.idle(t, func(r *api.CreateRequest) {
		r.Resources = api.Resources{Memory: 32 << 20, MemorySwap: 32 << 20}
	})}
	r, err := e.run(t, "", e.request([]string{"probe", "eat"}))
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 137, Signal: "KILL", OOMKilled: true}, r.exit)
	require.NoError(t, m.Pause(ctx, api.PauseRequest{ID: e.id}))
	_, err = e.run(t, "", e.request([]string{"true"}))
	require.ErrorIs(t, err, errs.ErrConflict)
	require.ErrorContains(t, err, "paused")
	require.NoError(t, m.Pause(ctx, api.PauseRequest{ID: e.id, Resume: true}))
	e.sh(t, "true")
}

func TestDetachedExec(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	req := e.request([]string{"sh", "-c", "echo lost; trap 'exit 5' TERM; touch /up; while :; do sleep 0.1; done"})
	req.Detach = true
	p, err := m.Exec(ctx, req, nil, nil)
	require.NoError(t, err)
	p.Close()
	_, err = m.Exec(ctx, req, nil, nil)
	require.ErrorIs(t, err, errs.ErrExists)
	rep, err := m.ExecInspect(ctx, api.ExecInspectRequest{ExecID: req.ExecID})
	require.NoError(t, err)
	require.True(t, rep.Running)
	e.sh(t, "while ! ls /up 2>/dev/null; do sleep 0.05; done >/dev/null")
	rep, err = m.ExecInspect(ctx, api.ExecInspectRequest{ExecID: req.ExecID, Signal: "TERM", Wait: true})
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 5}, rep.Exit)
	// What an exec leaves goes on.
	e.sh(t, "sleep 54321 >/dev/null 2>&1 &")
	require.Equal(t, "1\n", e.sh(t, "ps | grep -c '[5]4321'"))
}

func TestContainerExitEndsItsExecs(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	var all []*agent.Process
	for range 3 {
		p, err := m.Exec(ctx, e.request([]string{"sleep", "1000"}), nil, nil)
		require.NoError(t, err)
		all = append(all, p)
	}
	require.NoError(t, m.Kill(ctx, api.KillRequest{ID: e.id, Signal: "KILL"}))
	for _, p := range all {
		exit, err := p.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, api.Exit{Code: 137, Signal: "KILL"}, exit)
	}
	_, err := m.Wait(ctx, api.WaitRequest{ID: e.id})
	require.NoError(t, err)
	_, err = e.run(t, "", e.request([]string{"true"}))
	require.ErrorIs(t, err, errs.ErrConflict)
	require.ErrorContains(t, err, "exited")
}

// TestHundredExecsLeaveNothing looks at the guest from a container that sees nothing of it but counts.
func TestHundredExecsLeaveNothing(t *testing.T) {
	m := useMachine(t)
	e := &execs{m: m, id: m.idle(t)}
	ctx := testContext(t)
	e.sh(t, "true")
	before := atoi(t, strings.Fields(e.sh(t, "cat /proc/sys/fs/file-nr"))[0])
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			for i := range 10 {
				req := e.request([]string{"sh", "-c", "sleep 0.01; exit 9"})
				xctx, cancel := context.WithCancel(ctx)
				if (g+i)%3 == 0 {
					cancel()
				}
				p, err := m.Exec(xctx, req, nil, nil)
				if err == nil && (g+i)%3 == 1 {
					p.Close()
				} else if err == nil {
					if exit, err := p.Wait(ctx); err != nil || exit.Code != 9 {
						t.Errorf("%+v, %v", exit, err)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	// In the end there is the cgroup of the one who looks, and in the container's own the one who does nothing.
	require.Equal(t, "1\n", e.sh(t, `
		while [ "$(ls -d /sys/fs/cgroup/exec-* | wc -l)" != 1 ]; do sleep 0.05; done
		cat /sys/fs/cgroup/cgroup.procs`))
	after := atoi(t, strings.Fields(e.sh(t, "cat /proc/sys/fs/file-nr"))[0])
	require.InDelta(t, before, after, 64, "open files of the guest")
}

func BenchmarkExec(b *testing.B) {
	m := useMachine(b)
	e := &execs{m: m, id: m.idle(b)}
	for b.Loop() {
		r, err := e.run(b, "", e.request([]string{"true"}))
		require.NoError(b, err)
		require.Zero(b, r.exit.Code)
	}
}
