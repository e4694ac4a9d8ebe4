package guest_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestContainer(t *testing.T) {
	m := useMachine(t)
	out := m.sh(t, `
		echo pid $$
		id
		hostname
		cat /etc/hostname
		pwd
		env | sort
		readlink /proc/self/ns/pid >/dev/null && echo proc
		ip addr show lo | grep -c 127.0.0.1
		echo /proc/[0-9]*
		echo > /dev/null && head -c 4 /dev/zero | wc -c
		ls /dev
		cat /proc/self/oom_score_adj
		umask
		ulimit -n`, func(r *api.CreateRequest) { r.Hostname = "box" })
	require.Equal(t, `pid 1
uid=0 gid=0 groups=0
box
box
/
HOME=/root
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PWD=/
SHLVL=1
proc
1
/proc/1
4
console
core
fd
full
mqueue
null
ptmx
pts
random
shm
stderr
stdin
stdout
tty
urandom
zero
0
0022
1024
`, out)
}

func TestDefaultHostnameIsTheID(t *testing.T) {
	m := useMachine(t)
	out := m.sh(t, "hostname; cat /etc/hosts", func(r *api.CreateRequest) { r.ID = "0123456789abcdef" })
	require.True(t, strings.HasPrefix(out, "0123456789ab\n"), out)
	require.Contains(t, out, "\t0123456789ab\n")
}

func TestPingTellsOfTheGuest(t *testing.T) {
	m := useMachine(t)
	m.sh(t, "true") // everything is loaded now
	rep, err := m.Ping(testContext(t))
	require.NoError(t, err)
	require.Equal(t, api.Version, rep.Version)
	require.Contains(t, rep.Kernel, ".")
	require.Positive(t, rep.Uptime)
	require.True(t, rep.Vsock)
	var last time.Duration
	for _, p := range rep.Phases {
		require.LessOrEqual(t, last, p.At)
		last = p.At
	}
	require.Contains(t, fmt.Sprint(rep.Phases), "late modules")
	now := strings.TrimSpace(m.sh(t, "date +%s", func(r *api.CreateRequest) { r.ID = "clock" }))
	require.InDelta(t, time.Now().Unix(), atoi(t, now), 5)
}

func atoi(t testing.TB, s string) (n int64) {
	_, err := fmt.Sscan(s, &n)
	require.NoError(t, err)
	return n
}

func TestExits(t *testing.T) {
	m := useMachine(t)
	for name, tc := range map[string]struct {
		args  []string
		specs []spec
		want  api.Exit
		err   error
	}{
		"zero":                   {args: []string{"true"}},
		"code":                   {args: []string{"probe", "exit"}, want: api.Exit{Code: 42}},
		"killed by itself":       {args: []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, want: api.Exit{Code: 137}},
		"absolute path":          {args: []string{"/bin/true"}},
		"relative path":          {args: []string{"./bin/true"}},
		"no command":             {args: []string{"nope"}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"empty command":          {args: []string{""}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"no such file":           {args: []string{"/bin/nope"}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"below a file":           {args: []string{"/bin/plain/x"}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"no interpreter":         {args: []string{"nointerp"}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"a loop of links":        {args: []string{"/bin/loop"}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"not executable":         {args: []string{"plain"}, want: api.Exit{Code: 126}, err: errs.ErrNoExecutable},
		"not a program":          {args: []string{"garbage"}, want: api.Exit{Code: 126}, err: errs.ErrNoExecutable},
		"a directory":            {args: []string{"/bin"}, want: api.Exit{Code: 126}, err: errs.ErrNoExecutable},
		"not for this user":      {args: []string{"/secret/tool"}, specs: []spec{withUser("1000")}, want: api.Exit{Code: 126}, err: errs.ErrNoExecutable},
		"searched further":       {args: []string{"tool"}},
		"path of the container":  {args: []string{"true"}, specs: []spec{env("PATH=/nowhere")}, want: api.Exit{Code: 127}, err: errs.ErrNoCommand},
		"path with empty places": {args: []string{"true"}, specs: []spec{env("PATH=:/nowhere:/bin/")}},
		"agent's own executable": {args: []string{"self"}, want: api.Exit{Code: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := m.run(t, request(t, tc.args, tc.specs...), "")
			if tc.err != nil {
				require.ErrorIs(t, err, tc.err)
				require.ErrorContains(t, err, tc.args[0])
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, tc.want, r.exit, r.stderr)
		})
	}
}

func env(list ...string) spec { return func(r *api.CreateRequest) { r.Process.Env = list } }

func TestBadRequests(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	for name, change := range map[string]spec{
		"no id":              func(r *api.CreateRequest) { r.ID = "" },
		"id that is a path":  func(r *api.CreateRequest) { r.ID = "../x" },
		"long id":            func(r *api.CreateRequest) { r.ID = strings.Repeat("x", 129) },
		"no layers":          func(r *api.CreateRequest) { r.Layers = nil },
		"too many layers":    func(r *api.CreateRequest) { r.Layers = make([]api.Layer, 128) },
		"bad serial":         func(r *api.CreateRequest) { r.Layers[0].Serial = "../../sda" },
		"no command":         func(r *api.CreateRequest) { r.Process.Args = nil },
		"zero byte":          func(r *api.CreateRequest) { r.Process.Args = []string{"a\x00b"} },
		"variable":           env("=x"),
		"relative cwd":       func(r *api.CreateRequest) { r.Process.Cwd = "x" },
		"host name":          func(r *api.CreateRequest) { r.Hostname = "a b" },
		"unknown user":       withUser("nobody"),
		"unknown group":      withUser("0:nobody"),
		"user out of range":  withUser("4294967295"),
		"unknown capability": func(r *api.CreateRequest) { r.Process.Capabilities = []string{"CAP_FLY"} },
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, m.Create(ctx, request(t, []string{"true"}, change)), errs.ErrInvalid)
		})
	}
	t.Run("the id is free afterwards", func(t *testing.T) {
		req := request(t, []string{"true"}, withUser("nobody"))
		require.ErrorIs(t, m.Create(ctx, req), errs.ErrInvalid)
		req.Process.User = ""
		r, err := m.run(t, req, "")
		require.NoError(t, err)
		require.Zero(t, r.exit)
	})
	for name, err := range map[string]error{
		"wait":   func() error { _, err := m.Wait(ctx, api.WaitRequest{ID: "none"}); return err }(),
		"start":  func() error { _, err := m.Start(ctx, api.StartRequest{ID: "none"}); return err }(),
		"kill":   m.Kill(ctx, api.KillRequest{ID: "none", Signal: "TERM"}),
		"remove": m.Remove(ctx, api.RemoveRequest{ID: "none"}),
		"attach": func() error { _, err := m.Attach(ctx, api.AttachRequest{ID: "none"}, nil, nil); return err }(),
	} {
		require.ErrorIs(t, err, errs.ErrNotFound, name)
	}
}

func TestUsers(t *testing.T) {
	m := useMachine(t)
	for name, tc := range map[string]struct {
		user, image, want string
	}{
		"root":                 {"", "users", "0 0 0 10 /root"},
		"name":                 {"app", "users", "1000 1001 10 29 1001 /home/app"},
		"number that is known": {"1000", "users", "1000 1001 10 29 1001 /home/app"},
		"with a group":         {"app:audio", "users", "1000 29 29 /home/app"},
		"with a group number":  {"app:5", "users", "1000 5 5 /home/app"},
		"unknown number":       {"77", "users", "77 0 0 /"},
		"no passwd":            {"77:88", "base", "77 88 88 /"},
	} {
		t.Run(name, func(t *testing.T) {
			use := layers("base", "users")
			if tc.image == "base" {
				use = layers("base")
			}
			got := m.sh(t, `
				set -- $(grep ^Groups: /proc/self/status); shift
				echo $(id -u) $(id -g) $@ $HOME
				touch /dev/shm/x
				echo out > /dev/stdout`, use, withUser(tc.user))
			require.Equal(t, tc.want+"\nout\n", got)
		})
	}
}

func TestCapabilities(t *testing.T) {
	m := useMachine(t)
	caps := func(list []string) spec {
		return func(r *api.CreateRequest) { r.Process.Capabilities = list }
	}
	for name, tc := range map[string]struct {
		specs               []spec
		inh, perm, eff, bnd string
	}{
		"default":  {nil, "0", "a80425fb", "a80425fb", "a80425fb"},
		"none":     {[]spec{caps([]string{})}, "0", "0", "0", "0"},
		"some":     {[]spec{caps([]string{"CAP_CHOWN", "net_raw"})}, "0", "2001", "2001", "2001"},
		"all":      {[]spec{caps([]string{"ALL"})}, "0", "1ffffffffff", "1ffffffffff", "1ffffffffff"},
		"not root": {[]spec{withUser("1000")}, "0", "0", "0", "a80425fb"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := m.run(t, request(t, []string{"probe", "caps"}, tc.specs...), "")
			require.NoError(t, err)
			var got []string
			for line := range strings.Lines(r.stdout) {
				_, v, _ := strings.Cut(line, ":\t")
				v = strings.TrimLeft(strings.TrimSpace(v), "0")
				if v == "" {
					v = "0"
				}
				got = append(got, v)
			}
			require.Equal(t, []string{tc.inh, tc.perm, tc.eff, tc.bnd, "0"}, got)
		})
	}
}

func TestWorkingDirectory(t *testing.T) {
	m := useMachine(t)
	cwd := func(dir string) spec { return func(r *api.CreateRequest) { r.Process.Cwd = dir } }
	for _, dir := range []string{"/", "/bin", "/made/for/this", "/bin/../new"} {
		t.Run(dir, func(t *testing.T) {
			require.Equal(t, strings.ReplaceAll(dir, "/bin/../new", "/new")+"\n", m.sh(t, "pwd", cwd(dir)))
		})
	}
	for name, dir := range map[string]string{"a file": "/bin/plain", "a file of the agent": "/proc/self/fd/4", "below a file": "/bin/plain/x"} {
		t.Run(name, func(t *testing.T) {
			r, err := m.run(t, request(t, []string{"true"}, cwd(dir)), "")
			require.Error(t, err)
			require.ErrorContains(t, err, dir)
			require.Equal(t, 128, r.exit.Code)
		})
	}
}

func TestLayers(t *testing.T) {
	m := useMachine(t)
	script := "ls /bin/garbage 2>/dev/null; ls /etc; rm -r /bin/garbage; touch /new; true"
	require.Contains(t, m.sh(t, "ls /bin"), "garbage")
	require.NotContains(t, m.sh(t, "ls /bin", layers("base", "users"), func(r *api.CreateRequest) { r.ID = "upper" }), "garbage")
	twice := m.sh(t, "ls /bin; cat /etc/hosts", layers("base", "users", "base"), func(r *api.CreateRequest) { r.ID = "twice" })
	require.Contains(t, twice, "garbage", "the highest layer brings it back")
	require.NotContains(t, twice, "image's own", "the agent's hosts file lies over the image's")
	r, err := m.run(t, request(t, []string{"sh", "-c", script}, func(r *api.CreateRequest) { r.ID = "writes" }), "")
	require.NoError(t, err)
	require.Zero(t, r.exit)
	require.NotContains(t, m.sh(t, "ls /", func(r *api.CreateRequest) { r.ID = "clean" }), "new", "each container writes for itself")
}

func TestManyAtOnce(t *testing.T) {
	m := useMachine(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			req := request(t, []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)})
			req.ID = fmt.Sprint("many-", i)
			r, err := m.run(t, req, "")
			if err != nil || r.exit.Code != i || r.stdout != fmt.Sprintln(i) {
				t.Errorf("%d: %+v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
}
