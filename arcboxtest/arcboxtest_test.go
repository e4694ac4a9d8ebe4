package arcboxtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/arcboxtest"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(arcboxtest.Main(m)) }

// options are those of a test with the suite's kernel and an image store of its own.
func options(t *testing.T) arcboxtest.Options {
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	return arcboxtest.Options{Config: arcbox.Config{
		DataDir: t.TempDir(), VM: arcbox.VMConfig{CPUs: 2}, Boot: arcbox.BootConfig{Dir: filepath.Join(cache, "arcbox-test", "boot")},
	}}
}

// busybox loads an image, and skips the test where there is no machine on this host.
func busybox(t *testing.T, rt *arcboxtest.Sandbox) {
	t.Helper()
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600))
	_, err = rt.LoadImage(t.Context(), file, arcbox.LoadOptions{})
	require.NoError(t, err)
	needs.Machine(t, rt.StartMachine(t.Context(), arcbox.DefaultMachine))
}

func sh(t *testing.T, rt *arcboxtest.Sandbox, script string) string {
	t.Helper()
	var out bytes.Buffer
	p, err := rt.Exec(t.Context(), "keeper", arcbox.ExecSpec{Args: []string{"sh", "-c", script}}, arcbox.ExecOptions{Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	_, err = p.Wait(t.Context())
	require.NoError(t, err)
	return strings.TrimSpace(out.String())
}

func TestForksInParallelSubtests(t *testing.T) {
	rt := arcboxtest.Runtime(t, options(t))
	busybox(t, rt)
	require.NotEmpty(t, arcboxtest.Leaks(), "what is open is found")
	_, err := rt.RunContainer(t.Context(), arcbox.ContainerSpec{
		Name: "keeper", Image: "busybox:test", Args: []string{"sh", "-c", "while true; do sleep 1; done"},
		Sockets: []arcbox.SocketMapping{{HostPath: filepath.Join(t.TempDir(), "s"), ContainerPath: "/s"}},
		Mounts: []arcbox.Mount{
			{Type: arcbox.MountFS, FS: fstest.MapFS{"f": {}}, Target: "/fs"},
			{Type: arcbox.MountSocket, Dial: func(context.Context) (net.Conn, error) { return nil, io.EOF }, Target: "/run/s"},
		},
	}, arcbox.RunOptions{})
	require.NoError(t, err)
	sh(t, rt, "echo warm > /f")
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			child := rt.Fork(t)
			require.Equal(t, "warm", sh(t, child, "cat /f"))
			sh(t, child, fmt.Sprintf("echo %d >> /f", i))
			require.Equal(t, fmt.Sprintf("warm\n%d", i), sh(t, child, "cat /f"))
			if i == 0 { // its values were of another Runtime
				require.NoError(t, child.KillContainer(t.Context(), "keeper", "KILL"))
				_, err := child.WaitContainer(t.Context(), "keeper", arcbox.WaitOptions{})
				require.NoError(t, err)
				require.ErrorIs(t, child.StartContainer(t.Context(), "keeper"), arcbox.ErrUnavailable)
			}
		})
	}
	t.Run("again", func(t *testing.T) {
		t.Parallel()
		child := rt.ForkAgain(t)
		sh(t, child, "echo warmer >> /f")
		for i := range 2 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				grandchild := child.Fork(t)
				require.Equal(t, "warm\nwarmer", sh(t, grandchild, "cat /f"))
				sh(t, grandchild, "echo mine > /f")
			})
		}
	})
	t.Run("of one that cannot", func(t *testing.T) {
		child := rt.Fork(t)
		r := &recorder{TB: t, ctx: t.Context()}
		ended := make(chan struct{})
		go func() { // Fatalf ends it
			defer close(ended)
			child.Fork(r)
		}()
		<-ended
		require.Contains(t, r.out.String(), "ForkAgain")
	})
}

// recorder is a test that fails, and whose output is looked at.
type recorder struct {
	testing.TB
	ctx      context.Context
	out      strings.Builder
	cleanups []func()
}

func (r *recorder) Helper()                         {}
func (r *recorder) Failed() bool                    { return true }
func (r *recorder) Context() context.Context        { return r.ctx }
func (r *recorder) Cleanup(f func())                { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Logf(format string, args ...any) { fmt.Fprintf(&r.out, format, args...) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.Logf(format, args...)
	runtime.Goexit()
}
func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func TestFailedTestHasTheLogs(t *testing.T) {
	r := &recorder{TB: t, ctx: t.Context()}
	opts := options(t)
	opts.Config.VM.QEMU = filepath.Join(t.TempDir(), "none")
	rt := arcboxtest.Runtime(r, opts)
	require.Error(t, rt.StartMachine(t.Context(), arcbox.DefaultMachine))
	r.end()
	require.Contains(t, r.out.String(), "log of the runtime")
	require.ErrorIs(t, rt.StartMachine(t.Context(), arcbox.DefaultMachine), arcbox.ErrClosed)
}
