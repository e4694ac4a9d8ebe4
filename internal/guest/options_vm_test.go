package guest_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
)

func TestSeccomp(t *testing.T) {
	m := useMachine(t)
	const denied = "mount EPERM\nunshare EPERM\nkeyctl EPERM\nclone3 ENOSYS\nvsock EPERM\nunix \n"
	for name, tc := range map[string]struct {
		caps []string
		want string
		spec spec
	}{
		"default":         {nil, denied, func(*api.CreateRequest) {}},
		"no new privs":    {nil, denied, func(r *api.CreateRequest) { r.Process.NoNewPrivileges = true }},
		"not root":        {nil, denied, withUser("1000")},
		"no capabilities": {nil, denied, func(r *api.CreateRequest) { r.Process.Capabilities = []string{} }},
		"administrator": {[]string{"CAP_SYS_ADMIN"}, "mount EFAULT\nunshare \nkeyctl EPERM\nclone3 EINVAL\nvsock EPERM\nunix \n",
			func(r *api.CreateRequest) { r.Process.Capabilities = []string{"CAP_SYS_ADMIN"} }},
	} {
		t.Run(name, func(t *testing.T) {
			prog, err := seccomp.Default(runtime.GOARCH, tc.caps)
			require.NoError(t, err)
			r, err := m.run(t, request(t, []string{"probe", "calls"}, tc.spec, func(r *api.CreateRequest) { r.Process.Seccomp = prog }), "")
			require.NoError(t, err)
			require.Equal(t, tc.want, r.stdout, r.stderr)
		})
	}
	t.Run("a shell's work", func(t *testing.T) {
		prog, err := seccomp.Default(runtime.GOARCH, nil)
		require.NoError(t, err)
		require.Equal(t, "2\na\n2\n", m.sh(t, `mkdir /d; touch /d/a /d/b; ls /d | wc -l; (sleep 0; ls /d) | sort | head -n 1; grep ^Seccomp: /proc/self/status | cut -f2`,
			func(r *api.CreateRequest) { r.Process.Seccomp = prog }))
	})
	t.Run("none", func(t *testing.T) {
		r, err := m.run(t, request(t, []string{"probe", "calls"}), "")
		require.NoError(t, err)
		require.Contains(t, r.stdout, "clone3 EINVAL\nvsock \n")
	})
	t.Run("a program the kernel refuses", func(t *testing.T) {
		_, err := m.run(t, request(t, []string{"true"}, func(r *api.CreateRequest) { r.Process.Seccomp = make([]byte, 8) }), "")
		require.ErrorContains(t, err, "seccomp")
	})
	t.Run("a program that forbids everything", func(t *testing.T) {
		prog, err := seccomp.Compile(runtime.GOARCH, nil, []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`))
		require.NoError(t, err)
		// It forbids the report of what went wrong and a proper end, too.
		r, err := m.run(t, request(t, []string{"true"}, func(r *api.CreateRequest) { r.Process.Seccomp = prog }), "")
		require.NoError(t, err)
		require.Equal(t, "SEGV", r.exit.Signal)
	})
}

func TestProcessOptions(t *testing.T) {
	m := useMachine(t)
	for name, tc := range map[string]struct {
		script, want string
		spec         spec
	}{
		"no new privileges": {`grep NoNewPrivs /proc/self/status | cut -f2`, "1\n", func(r *api.CreateRequest) { r.Process.NoNewPrivileges = true }},
		"limits": {`ulimit -n; ulimit -Hn; ulimit -c`, "100\n200\n0\n", func(r *api.CreateRequest) {
			r.Process.Rlimits = []api.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
		}},
		"OOM score": {`cat /proc/self/oom_score_adj`, "-500\n", func(r *api.CreateRequest) { r.Process.OOMScoreAdj = -500 }},
		"groups": {`set -- $(grep ^Groups: /proc/self/status); shift; echo $@`, "10 29 77 1001\n", func(r *api.CreateRequest) {
			layers("base", "users")(r)
			r.Process.User, r.Process.Groups = "app", []string{"77", "audio"}
		}},
		"read-only root": {`touch /x 2>/dev/null || echo no; touch /dev/shm/x /t/x && echo yes; pwd`, "no\nyes\n/made/here\n", func(r *api.CreateRequest) {
			r.ReadOnly, r.Tmpfs, r.Process.Cwd = true, []api.Tmpfs{{Path: "/t"}}, "/made/here"
		}},
		"tmpfs": {`grep -c " /a/b .*nosuid,nodev,noexec.*size=1024k" /proc/self/mountinfo; stat -c %a /a/b; stat -c %a /c; grep " /c " /proc/self/mountinfo | grep -c noexec; true`,
			"1\n1777\n750\n0\n", func(r *api.CreateRequest) {
				r.Tmpfs = []api.Tmpfs{{Path: "/a/b", Size: 1 << 20}, {Path: "/c", Mode: 0o750, Exec: true}}
			}},
		"shm":         {`grep " /dev/shm " /proc/self/mountinfo | grep -o "size=[0-9]*k"`, "size=2048k\n", func(r *api.CreateRequest) { r.ShmSize = 2 << 20 }},
		"default shm": {`grep " /dev/shm " /proc/self/mountinfo | grep -o "size=[0-9]*k"`, "size=65536k\n", func(*api.CreateRequest) {}},
		"sysctls": {`cd /proc/sys; cat net/ipv4/ip_forward kernel/domainname kernel/shmmni net/ipv4/conf/lo/forwarding`, "1\nexample\n100\n1\n", func(r *api.CreateRequest) {
			r.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.domainname": "example", "kernel.shmmni": "100"}
		}},
		"hosts": {`grep db /etc/hosts`, "10.1.2.3\tdb\nfd00::1\tdb6\n", func(r *api.CreateRequest) {
			r.ExtraHosts = []api.Host{{Name: "db", IP: "10.1.2.3"}, {Name: "db6", IP: "fd00::1"}}
		}},
		"privileged": {`mkdir /m; mount -t tmpfs none /m && echo mounts; cat /dev/sd* 2>/dev/null | head -c 1 | wc -c; grep ^CapEff /proc/self/status | cut -f2
			(echo 1 > /proc/sys/vm/drop_caches) && echo writes; mkdir /sys/fs/cgroup/sub && echo cgroup; grep -c powercap /proc/self/mountinfo; true`,
			"mounts\n1\n000001ffffffffff\nwrites\ncgroup\n0\n", func(r *api.CreateRequest) { r.Privileged = true }},
		// lockdown cannot be left out of kernels that have it from their first steps.
		"security modules": {`mkdir /m; mount -t securityfs none /m && sed s/^lockdown,// /m/lsm`, "capability,landlock,yama",
			func(r *api.CreateRequest) { r.Privileged = true }},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, m.sh(t, tc.script, tc.spec)) })
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	m := useMachine(t)
	for name, s := range map[string]spec{
		"sysctl":             func(r *api.CreateRequest) { r.Sysctls = map[string]string{"net.nosuch": "1"} },
		"value of a sysctl":  func(r *api.CreateRequest) { r.Sysctls = map[string]string{"net.ipv4.ip_forward": "maybe"} },
		"sysctl of the host": func(r *api.CreateRequest) { r.Sysctls = map[string]string{"vm.swappiness": "1"} },
		"group":              func(r *api.CreateRequest) { r.Process.Groups = []string{"nosuch"} },
		"tmpfs on a file":    func(r *api.CreateRequest) { r.Tmpfs = []api.Tmpfs{{Path: "/bin/plain"}} },
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, []string{"true"}, s)
			err := m.Create(testContext(t), req)
			if err == nil {
				t.Cleanup(func() { _ = m.Remove(testContext(t), api.RemoveRequest{ID: req.ID, Force: true}) })
				_, err = m.Start(testContext(t), api.StartRequest{ID: req.ID})
			}
			require.ErrorIs(t, err, errs.ErrInvalid)
			require.False(t, strings.Contains(err.Error(), "panic"))
		})
	}
}
