package arcbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// testTimeout is far above what anything takes on a slow and busy machine.
const testTimeout = 3 * time.Minute

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ownerArg {
		owner(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == recordsArg {
		records(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == victimArg {
		victim(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == crowdArg {
		crowd(os.Args[2])
		return
	}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "close the shared runtime:", err)
		code = 1
	}
	if left := children(os.Getpid()); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "processes left behind:", left)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// children returns the command lines of the processes whose parent is pid.
func children(pid int) []string {
	var out []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		var state string
		var ppid int
		if _, err := fmt.Sscan(string(rest), &state, &ppid); err == nil && ppid == pid {
			cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(stat), "cmdline"))
			out = append(out, strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return out
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// bootDir is where the suite keeps kernels between runs.
func bootDir(t testing.TB) string {
	dir, err := os.UserCacheDir()
	require.NoError(t, err)
	return filepath.Join(dir, "arcbox-test", "boot")
}

// testConfig is a config with a data directory of its own and the suite's kernel.
func testConfig(t testing.TB) arcbox.Config {
	return arcbox.Config{
		DataDir: t.TempDir(),
		VM:      arcbox.VMConfig{CPUs: 2, Memory: 512 << 20},
		Boot:    arcbox.BootConfig{Dir: bootDir(t)},
	}
}

// newRuntime makes a Runtime of the test's own. Its console goes to the test's log.
func newRuntime(t testing.TB, cfg arcbox.Config) *arcbox.Runtime {
	t.Helper()
	if cfg.VM.Console == nil {
		con := &consoleLog{}
		cfg.VM.Console = con
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("console:\n%s", con)
			}
		})
	}
	rt, err := arcbox.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	return rt
}

// consoleLog keeps what it is written.
type consoleLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *consoleLog) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *consoleLog) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// shared is one Runtime with busybox for all tests that leave it as it was.
var shared sharedRuntime

type sharedRuntime struct {
	once sync.Once
	rt   *arcbox.Runtime
	con  consoleLog

	programs string // the image of realPrograms, once that is there
	dir      string
	err      error

	packing sync.Once
	busybox []byte // the archive of loadBusybox
}

func (s *sharedRuntime) get(t testing.TB) *arcbox.Runtime {
	t.Helper()
	s.once.Do(func() { s.err = s.start(t) })
	needs.Machine(t, s.err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", &s.con)
		}
	})
	return s.rt
}

func (s *sharedRuntime) start(t testing.TB) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "arcbox-test-*"); err != nil {
		return err
	}
	cfg := testConfig(t)
	cfg.DataDir, cfg.VM.Console = s.dir, &s.con
	cfg.Logger = slog.New(slog.NewTextHandler(&s.con, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if s.rt, err = arcbox.New(cfg); err != nil {
		return err
	}
	loadBusybox(t, s.rt)
	// A machine that cannot be had at all is known before the first test, from a container that is left alone.
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	_, err = s.rt.CreateContainer(ctx, arcbox.ContainerSpec{Name: "keep", Image: "busybox:test"}, arcbox.CreateOptions{})
	return err
}

func (s *sharedRuntime) close() error {
	if s.rt == nil {
		return nil
	}
	return errors.Join(s.rt.Close(), os.RemoveAll(s.dir))
}

// loadBusybox loads the image busybox:test.
func loadBusybox(t testing.TB, rt *arcbox.Runtime) {
	t.Helper()
	shared.packing.Do(func() {
		img, err := imagetest.Busybox(t)
		require.NoError(t, err)
		shared.busybox = imagetest.OCIArchive(t, img)
	})
	loadArchive(t, rt, shared.busybox)
}

func load(t testing.TB, rt *arcbox.Runtime, img imagetest.Image) arcbox.ImageInfo {
	t.Helper()
	return loadArchive(t, rt, imagetest.OCIArchive(t, img))
}

func loadArchive(t testing.TB, rt *arcbox.Runtime, archive []byte) arcbox.ImageInfo {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, archive, 0o600))
	infos, err := rt.LoadImage(testContext(t), file, arcbox.LoadOptions{})
	require.NoError(t, err)
	require.Len(t, infos, 1)
	return infos[0]
}

// result is what came of a container.
type result struct {
	exit           arcbox.Exit
	stdout, stderr string
}

// run runs a container of busybox to its end and removes it.
func run(t testing.TB, rt *arcbox.Runtime, spec arcbox.ContainerSpec, opts arcbox.RunOptions) result {
	t.Helper()
	if spec.Image == "" {
		spec.Image = "busybox:test"
	}
	spec.AutoRemove = true
	var stdout, stderr bytes.Buffer
	opts.Stdout, opts.Stderr = &stdout, &stderr
	ctx := testContext(t)
	p, err := rt.RunContainer(ctx, spec, opts)
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	if _, err := rt.WaitContainer(ctx, p.ContainerID(), arcbox.WaitOptions{Condition: arcbox.WaitRemoved}); !errors.Is(err, arcbox.ErrNotFound) {
		require.NoError(t, err)
	}
	return result{exit, stdout.String(), stderr.String()}
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// ownerArg makes the test binary the owner of a Runtime that is killed.
const ownerArg = "arcbox-test-owner"

// owner runs a container, says so, and waits to be killed. Two more arguments are a script for a container with the volume
// db, whose output is the owner's, and its image.
func owner(args []string) {
	spec, opts := arcbox.ContainerSpec{Image: "busybox:test", Args: sh("sleep 1000")}, arcbox.RunOptions{}
	if len(args) > 4 {
		spec.Args, spec.Image, opts.Stdout = sh(args[3]), args[4], os.Stdout
		spec.Mounts = []arcbox.Mount{{Type: arcbox.MountVolume, Source: "db", Target: "/db"}}
	}
	rt, err := arcbox.New(arcbox.Config{
		DataDir: args[0], VM: arcbox.VMConfig{CPUs: 1, Memory: 512 << 20}, Boot: arcbox.BootConfig{Dir: args[1]},
	})
	if err == nil {
		fmt.Println("made")
		_, err = rt.LoadImage(context.Background(), args[2], arcbox.LoadOptions{})
	}
	if err == nil {
		fmt.Println("loaded")
		_, err = rt.RunContainer(context.Background(), spec, opts)
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("running")
	select {}
}
