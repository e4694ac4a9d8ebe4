package container

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// TestBadFieldsAreNamed gives each field a value that cannot work. The error names the field and what to do.
func TestBadFieldsAreNamed(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"group empty":         {func(s *Spec) { s.Groups = []string{""} }, "group"},
		"group pair":          {func(s *Spec) { s.Groups = []string{"a:b"} }, "group"},
		"user long":           {func(s *Spec) { s.User = strings.Repeat("u", 257) }, "user"},
		"extra host no ip":    {func(s *Spec) { s.ExtraHosts = []string{"db"} }, "extra host"},
		"extra host bad ip":   {func(s *Spec) { s.ExtraHosts = []string{"db:1.2.3"} }, "extra host"},
		"extra host zone":     {func(s *Spec) { s.ExtraHosts = []string{"db:fe80::1%eth0"} }, "extra host"},
		"extra host newline":  {func(s *Spec) { s.ExtraHosts = []string{"d\nb:1.2.3.4"} }, "extra host"},
		"many extra hosts":    {func(s *Spec) { s.ExtraHosts = slices.Repeat([]string{"a:1.2.3.4"}, 257) }, "extra hosts"},
		"capability":          {func(s *Spec) { s.CapAdd = []string{"FLY"} }, "capability"},
		"capability dropped":  {func(s *Spec) { s.CapDrop = []string{""} }, "capability"},
		"seccomp":             {func(s *Spec) { s.Seccomp = "lax" }, "seccomp"},
		"seccomp long":        {func(s *Spec) { s.Seccomp = strings.Repeat(" ", maxProfile) + "{}" }, "seccomp"},
		"OOM score":           {func(s *Spec) { s.OOMScoreAdj = 1001 }, "OOM score"},
		"ulimit name":         {func(s *Spec) { s.Ulimits = []Ulimit{{Name: "files"}} }, "nofile"},
		"ulimit order":        {func(s *Spec) { s.Ulimits = []Ulimit{{Name: "nofile", Soft: 2, Hard: 1}} }, "ulimit nofile"},
		"ulimit soft none":    {func(s *Spec) { s.Ulimits = []Ulimit{{Name: "nofile", Soft: -1, Hard: 1}} }, "ulimit nofile"},
		"ulimit negative":     {func(s *Spec) { s.Ulimits = []Ulimit{{Name: "nofile", Soft: -2, Hard: -1}} }, "ulimit nofile"},
		"sysctl of the host":  {func(s *Spec) { s.Sysctls = map[string]string{"kernel.panic": "1"} }, "sysctl"},
		"sysctl path":         {func(s *Spec) { s.Sysctls = map[string]string{"net.ipv4/../../kernel/panic": "1"} }, "sysctl"},
		"sysctl dots":         {func(s *Spec) { s.Sysctls = map[string]string{"net...kernel.panic": "1"} }, "sysctl"},
		"sysctl lines":        {func(s *Spec) { s.Sysctls = map[string]string{"net.a": "1\n2"} }, "sysctl net.a"},
		"tmpfs relative":      {func(s *Spec) { s.Tmpfs = []Tmpfs{{Path: "run"}} }, "tmpfs"},
		"tmpfs dots":          {func(s *Spec) { s.Tmpfs = []Tmpfs{{Path: "/a/../b"}} }, "tmpfs"},
		"tmpfs root":          {func(s *Spec) { s.Tmpfs = []Tmpfs{{Path: "/"}} }, "tmpfs"},
		"tmpfs size":          {func(s *Spec) { s.Tmpfs = []Tmpfs{{Path: "/a", Size: -1}} }, "tmpfs"},
		"tmpfs mode":          {func(s *Spec) { s.Tmpfs = []Tmpfs{{Path: "/a", Mode: 0o10000}} }, "tmpfs"},
		"shm":                 {func(s *Spec) { s.ShmSize = -1 }, "/dev/shm"},
		"log size":            {func(s *Spec) { s.Log.MaxSize = 100 }, "log file"},
		"log files":           {func(s *Spec) { s.Log.MaxFiles = 1001 }, "log files"},
		"stop signal":         {func(s *Spec) { s.StopSignal = "SIGNOPE" }, "signal"},
		"restart name":        {func(s *Spec) { s.Restart.Name = "sometimes" }, "unless-stopped"},
		"restart count":       {func(s *Spec) { s.Restart = RestartPolicy{RestartAlways, 3} }, "on-failure"},
		"restart negative":    {func(s *Spec) { s.Restart = RestartPolicy{RestartOnFailure, -1} }, "on-failure"},
		"restart auto-remove": {func(s *Spec) { s.AutoRemove, s.Restart.Name = true, RestartAlways }, "restart policy"},
		"health kind":         {func(s *Spec) { s.Health = &HealthCheck{Test: []string{"curl"}} }, "CMD-SHELL"},
		"health shell":        {func(s *Spec) { s.Health = &HealthCheck{Test: []string{"CMD-SHELL", "a", "b"}} }, "health check"},
		"health no command":   {func(s *Spec) { s.Health = &HealthCheck{Test: []string{"CMD"}} }, "health check"},
		"health interval":     {func(s *Spec) { s.Health = &HealthCheck{Interval: time.Microsecond} }, "interval"},
		"health retries":      {func(s *Spec) { s.Health = &HealthCheck{Retries: -1} }, "retries"},
		"memory small":        {func(s *Spec) { s.Resources.Memory = 1 << 20 }, "memory"},
		"memory negative":     {func(s *Spec) { s.Resources.Memory = -2 }, "memory"},
		"swap alone":          {func(s *Spec) { s.Resources.MemorySwap = 1 << 30 }, "swap"},
		"swap below memory":   {func(s *Spec) { s.Resources.Memory, s.Resources.MemorySwap = 1<<30, 1<<29 }, "swap"},
		"CPUs":                {func(s *Spec) { s.Resources.CPUs = -2 }, "processors"},
		"CPUs not a number":   {func(s *Spec) { s.Resources.CPUs = math.NaN() }, "processors"},
		"CPUs and quota":      {func(s *Spec) { s.Resources.CPUs, s.Resources.CPUQuota = 1, time.Second }, "quota"},
		"quota":               {func(s *Spec) { s.Resources.CPUQuota = time.Microsecond }, "quota"},
		"period":              {func(s *Spec) { s.Resources.CPUPeriod = 2 * time.Second }, "period"},
		"shares":              {func(s *Spec) { s.Resources.CPUShares = 1 }, "shares"},
		"cpuset":              {func(s *Spec) { s.Resources.CPUSet = "0-" }, "cpuset"},
		"PIDs":                {func(s *Spec) { s.Resources.PIDs = -2 }, "processes"},
		"I/O weight":          {func(s *Spec) { s.Resources.IOWeight = 9 }, "I/O weight"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Spec{Image: "app"}
			tt.change(&s)
			err := s.Validate()
			require.ErrorIs(t, err, errs.ErrInvalid)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestCompileCarriesEveryField(t *testing.T) {
	s := Spec{
		Image: "app", Args: []string{"run"}, Groups: []string{"wheel", "7"}, ExtraHosts: []string{"db:10.0.0.2", "v6=[fd00::1]"},
		Init: true, ReadOnly: true, NoNewPrivileges: true, CapAdd: []string{"net_admin"}, CapDrop: []string{"ALL"},
		OOMScoreAdj: -5, Ulimits: []Ulimit{{"RLIMIT_NOFILE", 10, -1}}, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
		Tmpfs: []Tmpfs{{Path: "/run", Size: 1 << 20, Mode: 0o755, Exec: true}}, ShmSize: 1 << 20,
		Resources: Resources{
			Memory: 1 << 30, MemorySwap: 1 << 31, CPUs: 1.5, CPUShares: 512, CPUSet: "0-1,3", PIDs: 100, IOWeight: 20,
		},
		Log: LogLimits{MaxSize: 1 << 20, MaxFiles: 2},
	}
	require.NoError(t, s.Validate())
	req, err := compile(testID, s, ocispec.ImageConfig{}, nil)
	require.NoError(t, err)
	require.Equal(t, api.CreateRequest{
		ID: testID, Hostname: testID[:12],
		Process: api.Process{
			Args: []string{"run"}, Env: []string{defaultPath}, Cwd: "/", Groups: []string{"wheel", "7"},
			Capabilities: []string{"CAP_NET_ADMIN"}, NoNewPrivileges: true, OOMScoreAdj: -5,
			Rlimits: []api.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: math.MaxUint64}},
		},
		Resources: api.Resources{
			Memory: 1 << 30, MemorySwap: 1 << 31, CPUQuota: 150_000, CPUPeriod: 100_000, CPUShares: 512, CPUSet: "0-1,3", PIDs: 100, IOWeight: 20,
		},
		ReadOnly: true, Init: true, ShmSize: 1 << 20, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
		Tmpfs:      []api.Tmpfs{{Path: "/run", Size: 1 << 20, Mode: 0o755, Exec: true}},
		ExtraHosts: []api.Host{{Name: "db", IP: "10.0.0.2"}, {Name: "v6", IP: "fd00::1"}},
		Log:        api.LogLimits{MaxSize: 1 << 20, MaxFiles: 2},
	}, req)

	req, err = compile(testID, Spec{Args: []string{"x"}, Privileged: true, CapDrop: []string{"ALL"}}, ocispec.ImageConfig{}, nil)
	require.NoError(t, err)
	require.True(t, req.Privileged)
	require.Len(t, req.Process.Capabilities, 41)
}

func TestCapabilities(t *testing.T) {
	def := prefixed(defaultCaps)
	for name, tt := range map[string]struct{ add, drop, want []string }{
		"no change":      {nil, nil, nil},
		"add one":        {[]string{"SYS_TIME"}, nil, append(slices.Clone(def), "CAP_SYS_TIME")},
		"add a default":  {[]string{"CAP_CHOWN"}, nil, def},
		"drop one":       {nil, []string{"chown"}, slices.DeleteFunc(slices.Clone(def), func(c string) bool { return c == "CAP_CHOWN" })},
		"drop all":       {nil, []string{"all"}, []string{}},
		"drop all, add":  {[]string{"KILL"}, []string{"ALL"}, []string{"CAP_KILL"}},
		"add all":        {[]string{"ALL"}, nil, allCapabilities()},
		"add all, drop":  {[]string{"ALL"}, []string{"KILL"}, slices.DeleteFunc(allCapabilities(), func(c string) bool { return c == "CAP_KILL" })},
		"add beats drop": {[]string{"KILL"}, []string{"KILL"}, def},
		"all beats none": {[]string{"ALL"}, []string{"ALL"}, allCapabilities()},
		"the same twice": {[]string{"KILL", "CAP_KILL"}, []string{"ALL"}, []string{"CAP_KILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			slices.Sort(tt.want)
			require.Equal(t, tt.want, capabilities(tt.add, tt.drop))
		})
	}
}

func TestQuota(t *testing.T) {
	for _, tt := range []struct {
		r      Resources
		quota  int64
		period uint64
	}{
		{Resources{}, 0, 0},
		{Resources{CPUs: 0.5}, 50_000, 100_000},
		{Resources{CPUs: 0.01}, 1000, 100_000},
		{Resources{CPUs: -1}, -1, 0},
		{Resources{CPUQuota: -1}, -1, 0},
		{Resources{CPUQuota: 20 * time.Millisecond, CPUPeriod: 50 * time.Millisecond}, 20_000, 50_000},
		{Resources{CPUs: 2}.over(Resources{CPUQuota: time.Second}), 1_000_000, 0},
		{Resources{CPUQuota: time.Second}.over(Resources{CPUs: 1}), 100_000, 100_000},
	} {
		got := tt.r.compile()
		require.Equal(t, tt.quota, got.CPUQuota, "%+v", tt.r)
		require.Equal(t, tt.period, got.CPUPeriod, "%+v", tt.r)
	}
	base := Resources{Memory: 1, PIDs: 2, CPUSet: "0"}
	require.Equal(t, Resources{Memory: 9, PIDs: 2, CPUSet: "0", IOWeight: 10}, base.over(Resources{Memory: 9, IOWeight: 10}))
}

func TestSignalNames(t *testing.T) {
	for _, ok := range []string{"TERM", "SIGTERM", "sigusr1", "9", "64", "RTMIN+3", "SIGRTMAX-2", "WINCH"} {
		require.NoError(t, CheckSignal(ok), ok)
	}
	for _, bad := range []string{"", "0", "65", "-9", "SIG", "NOPE", "RTMIN+31", "RTMIN+", "TERM "} {
		require.ErrorIs(t, CheckSignal(bad), errs.ErrInvalid, bad)
	}
	require.True(t, sameSignal("SIGKILL", "9"))
	require.True(t, sameSignal("term", "SIGTERM"))
	require.False(t, sameSignal("INT", "KILL"))
}

func TestHealthCheckOfImageAndSpec(t *testing.T) {
	raw := []byte(`{"Test":["CMD-SHELL","true"],"Interval":1000000000,"Retries":5}`)
	h, err := compileHealth(nil, raw)
	require.NoError(t, err)
	require.Equal(t, &HealthCheck{
		Test: []string{"CMD-SHELL", "true"}, Interval: time.Second, Timeout: defaultTimeout, StartInterval: defaultStartInterval, Retries: 5,
	}, h)
	require.Equal(t, []string{"/bin/sh", "-c", "true"}, h.command())
	h, err = compileHealth(&HealthCheck{Interval: time.Minute}, raw)
	require.NoError(t, err)
	require.Equal(t, time.Minute, h.Interval)
	require.Equal(t, 5, h.Retries)
	h, err = compileHealth(&HealthCheck{Test: []string{"CMD", "a", "b"}}, raw)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, h.command())
	require.Equal(t, defaultRetries, h.Retries, "a check of one's own takes nothing of the image's")
	for _, none := range []*HealthCheck{{Test: []string{"NONE"}}} {
		h, err = compileHealth(none, raw)
		require.NoError(t, err)
		require.Nil(t, h)
	}
	h, err = compileHealth(nil, nil)
	require.NoError(t, err)
	require.Nil(t, h)
	for _, bad := range []string{`{`, `{"Test":["X"]}`, `{"Test":["CMD"]}`, `{"Test":["CMD","a"],"Interval":-1}`, `{"Test":5}`} {
		_, err = compileHealth(nil, []byte(bad))
		require.ErrorIs(t, err, errs.ErrInvalid, bad)
		h, err = compileHealth(&HealthCheck{Test: []string{"NONE"}}, []byte(bad))
		require.NoError(t, err)
		require.Nil(t, h)
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	var d time.Duration
	for range 12 {
		d = nextBackoff(d, time.Second)
		got = append(got, d)
	}
	require.Equal(t, firstBackoff, got[0])
	require.Equal(t, 51200*time.Millisecond, got[9])
	require.Equal(t, lastBackoff, got[11])
	require.Equal(t, firstBackoff, nextBackoff(d, goodRun))
}

// FuzzSpecLists holds that what validates also compiles, whatever the text.
func FuzzSpecLists(f *testing.F) {
	f.Add("db:1.2.3.4", "net.ipv4.x", "1", "/run", "NET_ADMIN", "nofile", "0-1")
	f.Fuzz(func(t *testing.T, host, ctl, value, dir, capName, ulimit, set string) {
		s := Spec{
			Image: "a", Args: []string{"x"}, ExtraHosts: []string{host}, Sysctls: map[string]string{ctl: value}, Tmpfs: []Tmpfs{{Path: dir}},
			CapAdd: []string{capName}, Ulimits: []Ulimit{{Name: ulimit}}, Resources: Resources{CPUSet: set},
		}
		if s.Validate() != nil {
			return
		}
		req, err := compile(testID, s, ocispec.ImageConfig{}, nil)
		require.NoError(t, err)
		require.NotContains(t, req.ExtraHosts[0].Name+req.ExtraHosts[0].IP, "\n")
		require.NotContains(t, ctl, "/")
		require.NotContains(t, ctl, "..")
	})
}
