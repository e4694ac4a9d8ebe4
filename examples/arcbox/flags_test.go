package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// capture is a file that remembers what is written to it.
type capture struct {
	*os.File
	wg  sync.WaitGroup
	buf bytes.Buffer
	r   *os.File
}

func newCapture(t *testing.T) *capture {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	c := &capture{File: w, r: r}
	c.wg.Go(func() { _, _ = io.Copy(&c.buf, r) })
	t.Cleanup(func() { c.text() })
	return c
}

// text closes the file and returns what was written.
func (c *capture) text() string {
	c.File.Close()
	c.wg.Wait()
	c.r.Close()
	return c.buf.String()
}

// call runs a command line in this process.
func call(t *testing.T, tune func(*cli), args ...string) (code int, stdout, stderr string) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	out, errs := newCapture(t), newCapture(t)
	c := &cli{in: null, out: out.File, err: errs.File}
	if tune != nil {
		tune(c)
	}
	code = c.run(t.Context(), args)
	return code, out.text(), errs.text()
}

func TestRunFlags(t *testing.T) {
	t.Setenv("ARCBOX_CLI_TEST", "from here")
	for _, tt := range []struct {
		args []string
		want arcbox.ContainerSpec
		pull arcbox.PullPolicy
	}{
		{[]string{"run", "alpine"}, arcbox.ContainerSpec{Image: "alpine", Args: []string{}}, arcbox.PullMissing},
		{
			[]string{"run", "-it", "--rm", "--name", "web", "alpine", "ls", "-l", "--name", "x"},
			arcbox.ContainerSpec{
				Image: "alpine", Args: []string{"ls", "-l", "--name", "x"}, Name: "web", Stdin: true, TTY: true, AutoRemove: true,
			}, arcbox.PullMissing,
		},
		{
			[]string{
				"run", "-e", "A=b,c", "--env=B=", "-e", "ARCBOX_CLI_TEST", "-e", "ARCBOX_CLI_NOT_SET", "-w", "/x", "-u", "1:2",
				"--hostname", "h", "--entrypoint", "/bin/sh", "-l", "k=v=w", "--label", "only", "--stop-signal", "INT", "--pull=always", "a/b:1", "--", "-x",
			},
			arcbox.ContainerSpec{
				Image: "a/b:1", Args: []string{"--", "-x"}, Env: []string{"A=b,c", "B=", "ARCBOX_CLI_TEST=from here"}, WorkingDir: "/x", User: "1:2",
				Hostname: "h", Entrypoint: []string{"/bin/sh"}, Labels: map[string]string{"k": "v=w", "only": ""}, StopSignal: "INT",
			}, arcbox.PullAlways,
		},
		{
			[]string{
				"create", "-m", "128m", "--memory-swap-limit=-1", "--cpus-limit", "1.5", "--cpu-shares", "512", "--cpuset-cpus", "0-1", "--pids-limit", "20",
				"--io-weight", "100", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges",
				"--read-only", "--tmpfs", "/tmp:size=1.5k,mode=700,exec", "--tmpfs", "/run", "--shm-size", "1GiB", "--ulimit", "nofile=10:20", "--ulimit", "core=-1",
				"--sysctl", "net.core.somaxconn=5", "--add-host", "db:10.0.0.1", "--init", "--privileged", "--restart", "on-failure:3", "--group-add", "5",
				"--oom-score-adj", "-5", "--stop-timeout", "3s", "--health-cmd", "true", "--health-interval", "1s", "--health-retries", "2", "x",
			},
			arcbox.ContainerSpec{
				Image: "x", Args: []string{}, CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}, Seccomp: arcbox.SeccompUnconfined, NoNewPrivileges: true,
				Resources: arcbox.Resources{Memory: 128 << 20, MemorySwap: -1, CPUs: 1.5, CPUShares: 512, CPUSet: "0-1", PIDs: 20, IOWeight: 100},
				ReadOnly:  true, Tmpfs: []arcbox.Tmpfs{{Path: "/tmp", Size: 1536, Mode: 0o700, Exec: true}, {Path: "/run"}}, ShmSize: 1 << 30,
				Ulimits: []arcbox.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}, {Name: "core", Soft: -1, Hard: -1}},
				Sysctls: map[string]string{"net.core.somaxconn": "5"}, ExtraHosts: []string{"db:10.0.0.1"}, Init: true, Privileged: true,
				Restart: arcbox.RestartPolicy{Name: arcbox.RestartOnFailure, MaxRetries: 3}, Groups: []string{"5"}, OOMScoreAdj: -5, StopTimeout: 3 * time.Second,
				Health: &arcbox.HealthCheck{Test: []string{"CMD-SHELL", "true"}, Interval: time.Second, Retries: 2},
			}, arcbox.PullMissing,
		},
		{
			[]string{"run", "--no-healthcheck", "--restart=always", "x"},
			arcbox.ContainerSpec{
				Image: "x", Args: []string{}, Restart: arcbox.RestartPolicy{Name: arcbox.RestartAlways}, Health: &arcbox.HealthCheck{Test: []string{"NONE"}},
			}, arcbox.PullMissing,
		},
		{[]string{"--data-dir", "/d", "run", "--pull", "never", "--", "alpine", "-x"}, arcbox.ContainerSpec{Image: "alpine", Args: []string{"-x"}}, arcbox.PullNever},
	} {
		var got arcbox.ContainerSpec
		var pull arcbox.PullPolicy
		code, _, stderr := call(t, func(c *cli) {
			c.start = func(_ context.Context, s arcbox.ContainerSpec, p arcbox.PullPolicy) error {
				got, pull = s, p
				return nil
			}
		}, tt.args...)
		require.Zero(t, code, stderr)
		require.Equal(t, tt.want, got, tt.args)
		require.Equal(t, tt.pull, pull)
	}
}

func TestGlobalFlags(t *testing.T) {
	var c *cli
	code, _, stderr := call(t, func(x *cli) {
		c = x
		c.start = func(context.Context, arcbox.ContainerSpec, arcbox.PullPolicy) error { return nil }
	}, "--data-dir=/d", "--boot-dir=/b", "--arch", "arm64", "--cpus", "3", "--memory", "256", "--accel", "tcg", "--console", "--verbose", "run", "-q", "x")
	require.Zero(t, code, stderr)
	cfg := c.config(nil)
	require.Equal(t, "/d", cfg.DataDir)
	require.Equal(t, "/b", cfg.Boot.Dir)
	require.EqualValues(t, 256<<20, cfg.VM.Memory)
	require.Equal(t, arcbox.VMConfig{Arch: "arm64", CPUs: 3, Memory: 256 << 20, Accelerator: "tcg", Console: c.err}, cfg.VM)
	require.NotNil(t, cfg.Logger)
	require.Nil(t, c.display(), "quiet")
}

func TestBadUsage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"nonsense"}, 1, "nonsense"},
		{[]string{"run"}, 1, "at least 1 arg"},
		{[]string{"run", "--nonsense", "x"}, exitOwn, "--nonsense"},
		{[]string{"run", "-e", "=x", "x"}, exitOwn, "--env"},
		{[]string{"run", "-l", "=x", "x"}, exitOwn, "--label"},
		{[]string{"run", "-m", "much", "x"}, exitOwn, "--memory-limit"},
		{[]string{"run", "-m", "-2", "x"}, exitOwn, "--memory-limit"},
		{[]string{"run", "-m", "NaN", "x"}, exitOwn, "--memory-limit"},
		{[]string{"run", "-m", "99999999t", "x"}, exitOwn, "--memory-limit"},
		{[]string{"run", "--shm-size", "k", "x"}, exitOwn, "--shm-size"},
		{[]string{"run", "--restart", "often", "x"}, exitOwn, "--restart"},
		{[]string{"run", "--restart", "always:3", "x"}, exitOwn, "--restart"},
		{[]string{"run", "--tmpfs", "/x:huge", "x"}, exitOwn, "--tmpfs"},
		{[]string{"run", "--ulimit", "nofile", "x"}, exitOwn, "--ulimit"},
		{[]string{"run", "--sysctl", "a", "x"}, exitOwn, "--sysctl"},
		{[]string{"run", "--security-opt", "apparmor=x", "x"}, exitOwn, "--security-opt"},
		{[]string{"run", "--security-opt", "seccomp=/no/such/file", "x"}, exitOwn, "/no/such/file"},
		{[]string{"ps", "--filter", "color=red"}, exitOwn, "--filter"},
		{[]string{"logs", "--since", "yesterday", "x"}, exitOwn, "--since"},
		{[]string{"start", "x"}, exitOwn, noDaemon},
		{[]string{"run", "--pull", "sometimes", "x"}, exitOwn, "always, missing or never"},
		{[]string{"run", "-it", "x"}, exitOwn, "not a terminal"},
		{[]string{"--data-dir", file, "run", "x"}, exitOwn, file},
		{[]string{"--data-dir", dir, "run", "--pull", "never", "no/such:image"}, exitOwn, "no/such:image"},
		{[]string{"--data-dir", dir, "run", "UPPER/case"}, exitOwn, "UPPER/case"},
		{[]string{"--data-dir", dir, "load", "/no/such/file"}, 1, "/no/such/file"},
		{[]string{"--data-dir", dir, "load", file}, 1, file},
		{[]string{"--data-dir", dir, "inspect", "no-such"}, 1, "no-such"},
		{[]string{"load"}, 1, "accepts 1 arg"},
		{[]string{"--data-dir", dir, "--mirror", "docker.io", "images"}, 1, "Mirrors"},
		{[]string{"--data-dir", dir, "save", "-o", filepath.Join(dir, "x"), "no-such"}, 1, "no-such"},
		{[]string{"--data-dir", dir, "push", "localhost:1/no-such"}, 1, "no-such"},
		{[]string{"--data-dir", dir, "rmi", "no-such", "nor/this"}, 1, "nor/this"},
		{[]string{"--data-dir", dir, "history", "no-such"}, 1, "no-such"},
		{[]string{"--data-dir", dir, "tag", "no-such", "x"}, 1, "no-such"},
		{[]string{"--data-dir", dir, "import", "/no/such/file"}, 1, "/no/such/file"},
		{[]string{"import", "-c", "RUN x", "-"}, exitOwn, "--change"},
		{[]string{"import", "-c", "CMD [", "-"}, exitOwn, "--change"},
		{[]string{"import", "-c", "ENV A", "-"}, exitOwn, "--change"},
		{[]string{"commit", "-c", "CMD", "x"}, exitOwn, "--change"},
		{[]string{"images", "-f", "color=red"}, exitOwn, "--filter"},
		{[]string{"images", "-f", "dangling=maybe"}, exitOwn, "--filter"},
		{[]string{"prune", "--budget", "much"}, exitOwn, "--budget"},
		{[]string{"ps", "x"}, 1, "x"},
	} {
		code, stdout, stderr := call(t, nil, tt.args...)
		require.Equal(t, tt.code, code, "%v: %s", tt.args, stderr)
		require.Contains(t, stderr, tt.want, tt.args)
		require.Empty(t, stdout)
	}
}

func TestHelpSaysWhatPsCanKnow(t *testing.T) {
	code, stdout, _ := call(t, nil, "ps", "--help")
	require.Zero(t, code)
	require.Contains(t, stdout, "no daemon")
	code, stdout, _ = call(t, nil, "--help")
	require.Zero(t, code)
	for _, name := range []string{"run", "create", "start", "exec", "attach", "logs", "stats", "top", "images", "pull", "push", "load", "save", "import", "tag", "rmi", "prune", "history", "ps", "inspect", "shell", "doctor"} {
		require.Contains(t, stdout, "  "+name)
	}
}

func TestEmptyLists(t *testing.T) {
	dir := t.TempDir()
	code, stdout, _ := call(t, nil, "--data-dir", dir, "images")
	require.Zero(t, code)
	require.Equal(t, "NAME   ID   PLATFORM   CREATED   SIZE\n", stdout)
	code, stdout, _ = call(t, nil, "--data-dir", dir, "ps")
	require.Zero(t, code)
	require.Equal(t, "ID   NAME   IMAGE   STATE   CREATED   PORTS\n", stdout)
}

func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		findings []arcbox.Finding
		code     int
		want     string
	}{
		{nil, 0, "all is well\n"},
		{
			[]arcbox.Finding{{Kind: "no-hardware-vm", Message: "none", Fix: "buy one"}}, 0,
			"note: no-hardware-vm: none\n\tto mend it: buy one\ncontainers can run\n",
		},
		{[]arcbox.Finding{{Kind: "x", Fatal: true, Message: "m"}}, 1, "missing: x: m\n"},
	} {
		out := newCapture(t)
		err := (&cli{out: out.File}).printFindings(tt.findings)
		if tt.code == 0 {
			require.NoError(t, err)
		} else {
			require.Equal(t, &exitError{tt.code, nil}, err)
		}
		require.Equal(t, tt.want, out.text())
	}
	code, stdout, stderr := call(t, nil, "--data-dir", dir, "--arch", "pdp11", "doctor")
	require.Equal(t, 1, code)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "pdp11")
}

func TestPullShowsEachLayer(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	one := imagetest.Files(t, map[string]imagetest.File{"one": {}})
	two := imagetest.Files(t, map[string]imagetest.File{"two": {}})
	ref := reg.Push(t, "app", "1", imagetest.Image{Layers: []imagetest.Layer{one, two}})
	dir := t.TempDir()
	code, stdout, stderr := call(t, nil, "--data-dir", dir, "pull", ref)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "pulled "+ref+" ")
	for _, l := range []imagetest.Layer{one, two} {
		require.Contains(t, stderr, "layer "+shortID(digest.FromBytes(l.Blob).String())+": done, ")
	}
	code, stdout, _ = call(t, nil, "--data-dir", dir, "images")
	require.Zero(t, code)
	require.Contains(t, stdout, ref)

	code, _, stderr = call(t, nil, "--data-dir", dir, "pull", reg.Host+"/app:2")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, reg.Host+"/app:2")
}
