package engine_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

func TestCheckOptions(t *testing.T) {
	type request = api.CreateRequest
	limits := func(l ...api.Rlimit) func(*request) { return func(r *request) { r.Process.Rlimits = l } }
	sysctl := func(name, value string) func(*request) {
		return func(r *request) { r.Sysctls = map[string]string{name: value} }
	}
	tmpfs := func(f api.Tmpfs) func(*request) { return func(r *request) { r.Tmpfs = []api.Tmpfs{f} } }
	host := func(name, ip string) func(*request) {
		return func(r *request) { r.ExtraHosts = []api.Host{{Name: name, IP: ip}} }
	}
	for name, change := range map[string]func(*request){
		"all": func(r *request) {
			r.Process.Rlimits = []api.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 1}, {Type: "RLIMIT_CORE", Hard: 1<<64 - 1}}
			r.Process.Groups, r.Process.OOMScoreAdj, r.Process.Seccomp = []string{"a", "1"}, -1000, make([]byte, 8*engine.MaxSeccomp)
			r.Tmpfs, r.ShmSize = []api.Tmpfs{{Path: "/dev/shm", Size: 1, Mode: 0o7777}, {Path: "/a/../b"}}, 1
			r.ExtraHosts = []api.Host{{Name: "a.b", IP: "::1"}}
		},
		"net":    sysctl("net.ipv4.conf.eth0/1.forwarding", "1"),
		"mqueue": sysctl("fs.mqueue.msg_max", "1"), "shm": sysctl("kernel.shm_rmid_forced", "1"),
		"domain": sysctl("kernel.domainname", "a"), "sem": sysctl("kernel.sem", "1 2 3 4"),
	} {
		t.Run(name, func(t *testing.T) {
			req := valid()
			change(&req)
			require.NoError(t, engine.CheckCreate(req))
		})
	}
	for name, change := range map[string]func(*request){
		"unknown limit":    limits(api.Rlimit{Type: "NOFILE"}),
		"soft above hard":  limits(api.Rlimit{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}),
		"limit twice":      limits(api.Rlimit{Type: "RLIMIT_CPU"}, api.Rlimit{Type: "RLIMIT_CPU"}),
		"OOM score":        func(r *request) { r.Process.OOMScoreAdj = 1001 },
		"group":            func(r *request) { r.Process.Groups = []string{""} },
		"many groups":      func(r *request) { r.Process.Groups = make([]string, 257) },
		"odd filter":       func(r *request) { r.Process.Seccomp = make([]byte, 9) },
		"long filter":      func(r *request) { r.Process.Seccomp = make([]byte, 8*4097) },
		"shm size":         func(r *request) { r.ShmSize = -1 },
		"relative tmpfs":   tmpfs(api.Tmpfs{Path: "a"}),
		"tmpfs on root":    tmpfs(api.Tmpfs{Path: "/a/.."}),
		"tmpfs on proc":    tmpfs(api.Tmpfs{Path: "/proc/sys"}),
		"tmpfs on dev":     tmpfs(api.Tmpfs{Path: "//dev/"}),
		"tmpfs size":       tmpfs(api.Tmpfs{Path: "/a", Size: -1}),
		"tmpfs mode":       tmpfs(api.Tmpfs{Path: "/a", Mode: 0o10000}),
		"sysctl of others": sysctl("vm.swappiness", "1"),
		"sysctl upwards":   sysctl("net....vm.swappiness", "1"),
		"sysctl up":        sysctl("net.//.//.kernel.panic", "1"),
		"host name":        sysctl("kernel.hostname", "a"),
		"two lines":        sysctl("net.ipv4.ip_forward", "1\n2"),
		"no value":         sysctl("net.ipv4.ip_forward", ""),
		"many sysctls": func(r *request) {
			r.Sysctls = map[string]string{}
			for i := range 300 {
				r.Sysctls["net."+strings.Repeat("x", i+1)] = "1"
			}
		},
		"host's address": host("a", "1.2.3"), "host's zone": host("a", "fe80::1%eth0\n"), "host's name": host("a b", "1.2.3.4"), "nameless host": host("", "1.2.3.4"),
		"memory": func(r *request) { r.Resources.Memory = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			req := valid()
			change(&req)
			err := engine.CheckCreate(req)
			require.ErrorIs(t, err, errs.ErrInvalid)
			require.Less(t, len(err.Error()), 400)
		})
	}
}

func TestCheckResources(t *testing.T) {
	for _, r := range []api.Resources{
		{}, {Memory: -1, MemorySwap: -1, CPUQuota: -1, PIDs: -1}, {Memory: 6 << 20, MemorySwap: 6 << 20},
		{CPUQuota: 1000, CPUPeriod: 1000, CPUShares: 2, IOWeight: 10, CPUSet: "0"}, {CPUSet: "0-2,4,7-7"},
	} {
		require.NoError(t, engine.CheckResources(r), "%+v", r)
	}
	for _, r := range []api.Resources{
		{Memory: -2}, {Memory: 1 << 20}, {MemorySwap: -2}, {Memory: 8 << 20, MemorySwap: 7 << 20}, {CPUQuota: 999}, {CPUQuota: -2},
		{CPUPeriod: 999}, {CPUPeriod: 1_000_001}, {CPUShares: 1}, {CPUShares: 262145}, {PIDs: -2}, {IOWeight: 9}, {IOWeight: 1001},
		{CPUSet: "a"}, {CPUSet: "1-"}, {CPUSet: "2-1"}, {CPUSet: "0,"}, {CPUSet: "5000"}, {CPUSet: "0\n1"}, {CPUSet: strings.Repeat("1,", 600) + "1"},
	} {
		require.ErrorIs(t, engine.CheckResources(r), errs.ErrInvalid, "%+v", r)
	}
}

func FuzzSysctl(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.x", "1")
	f.Fuzz(func(t *testing.T, name, value string) {
		req := valid()
		req.Sysctls = map[string]string{name: value}
		if engine.CheckCreate(req) != nil {
			return
		}
		p := "/" + engine.SysctlPath(name) + "/"
		require.NotContains(t, p, "/../")
		require.NotContains(t, p, "//")
		require.True(t, strings.HasPrefix(p, "/net/") || strings.HasPrefix(p, "/fs/mqueue/") || strings.HasPrefix(p, "/kernel/"))
	})
}
