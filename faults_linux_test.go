package arcbox_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func TestMissingQEMUSaysHowToInstallIt(t *testing.T) {
	cfg := testConfig(t)
	cfg.VM.QEMU = "/no/such/qemu"
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	ctx := testContext(t)
	_, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	require.ErrorContains(t, err, "install")
	infos, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Empty(t, infos, "a failed create leaves no container")
}

func TestQEMUThatDiesAtOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.VM.QEMU = filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\ncase $1 in -version|--version) echo 'QEMU emulator version 8.0.0';; *) echo 'my last words' >&2; exit 3;; esac\n"
	require.NoError(t, os.WriteFile(cfg.VM.QEMU, []byte(script), 0o755))
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	_, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
	require.Error(t, err)
	require.ErrorContains(t, err, "my last words")
}

// TestKernelPanic boots a kernel whose init is no program: the error must have the console's last lines, and a runtime
// with a sound config must work after it in the same data directory.
func TestKernelPanic(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	cfg.Boot.Dir, cfg.VM.DiskSize = t.TempDir(), 1<<30 // what a disk is made from has to be made too
	assets, err := boot.Resolve(testContext(t), boot.Config{Dir: bootDir(t)})
	require.NoError(t, err)
	cfg.Boot.Kernel = assets.Kernel
	cfg.Boot.Agent = filepath.Join(t.TempDir(), "agent")
	src := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(src, []byte("package main\nfunc main() { println(\"init goes home\") }\n"), 0o600))
	build := exec.CommandContext(testContext(t), "go", "build", "-o", cfg.Boot.Agent, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))

	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	_, err = rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{})
	require.Error(t, err)
	require.ErrorContains(t, err, "init goes home")
	require.ErrorContains(t, err, "Kernel panic")
	require.NoError(t, rt.Close())

	cfg.Boot = arcbox.BootConfig{Dir: bootDir(t)}
	rt = newRuntime(t, cfg)
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
}

func TestDataDirThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, dir := range map[string]string{"a file": file, "below a file": filepath.Join(file, "x"), "read-only": "/proc/arcbox"} {
		t.Run(name, func(t *testing.T) {
			_, err := arcbox.New(arcbox.Config{DataDir: dir})
			require.ErrorIs(t, err, arcbox.ErrUnavailable)
			require.ErrorContains(t, err, "Config.DataDir")
		})
	}
}

func TestBadConfigNamesTheField(t *testing.T) {
	for field, cfg := range map[string]arcbox.Config{
		"Config.VM.CPUs":     {VM: arcbox.VMConfig{CPUs: -1}},
		"Config.VM.Memory":   {VM: arcbox.VMConfig{Memory: 512}},
		"Config.VM.DiskSize": {VM: arcbox.VMConfig{DiskSize: 5}},
		"Config.VM.Arch":     {VM: arcbox.VMConfig{Arch: "vax"}},
		"Registry.Parallel":  {Registry: arcbox.RegistryConfig{Parallel: -1}},
		"Registry.Mirrors":   {Registry: arcbox.RegistryConfig{Mirrors: map[string][]string{"docker.io": {"https://x.io"}}}},
		"Registry.CA":        {Registry: arcbox.RegistryConfig{CA: []byte("x")}},
	} {
		cfg.DataDir = t.TempDir()
		_, err := arcbox.New(cfg)
		require.ErrorIs(t, err, arcbox.ErrInvalid)
		require.ErrorContains(t, err, field)
	}
}

func TestBadImages(t *testing.T) {
	rt := newRuntime(t, testConfig(t))
	ctx := testContext(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	whole := imagetest.OCIArchive(t, img)
	foreign := img
	foreign.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	liar := img
	liar.ConfigJSON = bytes.Replace(img.ConfigBlob(t), []byte(`"diff_ids":["sha256:`), []byte(`"diff_ids":["sha256:`+strings.Repeat("0", 64)+`","sha256:`), 1)
	liar.Layers = append(liar.Layers[:1:1], liar.Layers[0])
	damaged := bytes.Clone(whole)
	damaged[bytes.Index(damaged, img.Layers[0].Blob)+len(img.Layers[0].Blob)/2] ^= 0xff
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"no archive":     {bytes.Repeat([]byte("hello"), 1000), arcbox.ErrInvalid},
		"empty":          {nil, arcbox.ErrInvalid},
		"truncated":      {whole[:len(whole)/2], arcbox.ErrCorrupt},
		"damaged layer":  {damaged, arcbox.ErrCorrupt},
		"wrong DiffID":   {imagetest.OCIArchive(t, liar), arcbox.ErrCorrupt},
		"wrong platform": {imagetest.OCIArchive(t, foreign), arcbox.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image.tar")
			require.NoError(t, os.WriteFile(file, tt.data, 0o600))
			_, err := rt.LoadImage(ctx, file, arcbox.LoadOptions{})
			require.ErrorIs(t, err, tt.want)
			infos, err := rt.ListImages(ctx, arcbox.ListImagesOptions{})
			require.NoError(t, err)
			require.Empty(t, infos, "nothing half-done is visible")
		})
	}
	_, err = rt.LoadImage(ctx, "/no/such/file", arcbox.LoadOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	loadBusybox(t, rt)
}

func TestPullFromARegistry(t *testing.T) {
	rt := newRuntime(t, testConfig(t))
	ctx := testContext(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	host := serveImage(t, "app", "1", img)
	var mu sync.Mutex
	var last arcbox.LayerProgress
	info, err := rt.PullImage(ctx, host+"/app:1", arcbox.PullOptions{Progress: func(p arcbox.LayerProgress) {
		mu.Lock()
		defer mu.Unlock()
		last = p
	}})
	require.NoError(t, err)
	require.Equal(t, []string{host + "/app:1"}, info.Names)
	require.Equal(t, last.Total, last.Done)
	require.Positive(t, last.Total)
	_, err = rt.PullImage(ctx, host+"/app:2", arcbox.PullOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = rt.PullImage(ctx, "127.0.0.1:1/app:1", arcbox.PullOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	_, err = rt.PullImage(ctx, "not a reference", arcbox.PullOptions{})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
}

// TestDiskFullDuringPull pulls into a data directory on a small file system, makes room, and pulls again.
func TestDiskFullDuringPull(t *testing.T) {
	dir := needs.SmallDir(t, "4m")
	cfg := testConfig(t)
	cfg.DataDir = dir
	rt := newRuntime(t, cfg)
	ctx := testContext(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	host := serveImage(t, "app", "1", img)
	ballast := filepath.Join(dir, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 3<<20), 0o600))
	_, err = rt.PullImage(ctx, host+"/app:1", arcbox.PullOptions{})
	require.ErrorIs(t, err, syscall.ENOSPC)
	infos, err := rt.ListImages(ctx, arcbox.ListImagesOptions{})
	require.NoError(t, err)
	require.Empty(t, infos)
	require.NoError(t, os.Remove(ballast))
	_, err = rt.PullImage(ctx, host+"/app:1", arcbox.PullOptions{})
	require.NoError(t, err)
}

// serveImage serves one image from a registry in this process and returns its host.
func serveImage(t *testing.T, repo, tag string, img imagetest.Image) string {
	t.Helper()
	blobs, manifest := img.Blobs(t), img.Manifest(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, "/v2/"+repo+"/")
		kind, ref, _ := strings.Cut(name, "/")
		switch {
		case r.URL.Path == "/v2/":
		case ok && kind == "manifests" && ref == tag:
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = w.Write(manifest)
		default:
			for d, b := range blobs {
				if ok && d.String() == ref {
					if kind == "manifests" {
						w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
					}
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
					return
				}
			}
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// TestCancelAtAnyMoment cancels RunContainer after ever longer times, on a warm machine and on a cold one. Whatever the
// moment, the call returns the context's error or succeeds, and leaves no container that the caller does not know.
func TestCancelAtAnyMoment(t *testing.T) {
	rt := shared.get(t)
	before, err := rt.ListContainers(testContext(t), arcbox.ListContainersOptions{})
	require.NoError(t, err)
	for d := time.Duration(0); d < 200*time.Millisecond; d += 7 * time.Millisecond {
		ctx, cancel := context.WithTimeout(testContext(t), d)
		p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: []string{"true"}}, arcbox.RunOptions{})
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded, "after %v", d)
			continue
		}
		_, err = p.Wait(testContext(t))
		require.NoError(t, err)
		require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{}))
	}
	after, err := rt.ListContainers(testContext(t), arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
}

func TestCancelDuringBoot(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	cfg.VM.Template = arcbox.TemplateOff
	rt := newRuntime(t, cfg)
	loadBusybox(t, rt)
	for _, d := range []time.Duration{0, 20 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(testContext(t), d)
		_, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.RunOptions{})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
}

// TestCloseAtAnyMoment closes runtimes that are starting, running and doing nothing, from several goroutines.
func TestCloseAtAnyMoment(t *testing.T) {
	shared.get(t)
	dir := t.TempDir()
	for _, d := range []time.Duration{0, 5 * time.Millisecond, 100 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second} {
		cfg := testConfig(t)
		cfg.DataDir = dir
		rt := newRuntime(t, cfg)
		loadBusybox(t, rt)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				p, err := rt.RunContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Args: sh("sleep 1000")}, arcbox.RunOptions{})
				if err == nil {
					_, err = p.Wait(testContext(t))
				}
				if !errors.Is(err, arcbox.ErrClosed) {
					t.Errorf("after %v: %v", d, err)
				}
			})
		}
		timer := time.NewTimer(d)
		<-timer.C
		wg.Go(func() { _ = rt.Close() })
		require.NoError(t, rt.Close())
		wg.Wait()
		require.Empty(t, qemuOf(t, os.Getpid(), shared.rt), "closed after %v", d)
		_, err := rt.ListImages(testContext(t), arcbox.ListImagesOptions{})
		require.ErrorIs(t, err, arcbox.ErrClosed)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// qemuOf returns the QEMU children of a process, but for the one that the shared runtime has.
func qemuOf(t *testing.T, pid int, rt *arcbox.Runtime) []string {
	t.Helper()
	var out []string
	for _, c := range children(pid) {
		if strings.Contains(c, "qemu") {
			out = append(out, c)
		}
	}
	if rt != nil && len(out) > 0 {
		out = out[1:]
	}
	return out
}

// TestKilledOwnerLeavesNothing kills a program that uses arcbox with SIGKILL, at several moments, and finds no process of
// its left; the same data directory works on.
func TestKilledOwnerLeavesNothing(t *testing.T) {
	shared.get(t)
	dir := t.TempDir()
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600))
	for _, at := range []struct {
		line  string
		after time.Duration
	}{{"made", 0}, {"loaded", 0}, {"loaded", 500 * time.Millisecond}, {"running", 0}} {
		cmd := exec.CommandContext(testContext(t), os.Args[0], ownerArg, dir, bootDir(t), file)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != at.line {
			require.NotContains(t, lines.Text(), "error")
		}
		require.Equal(t, at.line, lines.Text())
		<-time.NewTimer(at.after).C
		qemus := killTree(t, cmd)
		require.Error(t, cmd.Wait())
		if at.line == "running" {
			require.NotZero(t, qemus)
		}
	}
	cfg := testConfig(t)
	cfg.DataDir = dir
	rt := newRuntime(t, cfg)
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
}

// killTree kills a program that was started, waits until its children have ended too, which nobody kills, and returns how
// many there were. What it has said can be read yet, and it has to be waited for.
func killTree(t *testing.T, cmd *exec.Cmd) (children int) {
	t.Helper()
	fds := pidfds(t, cmd.Process.Pid)
	require.NoError(t, cmd.Process.Kill())
	for _, fd := range fds {
		n, err := 0, error(unix.EINTR)
		for err == unix.EINTR { // by a signal of the Go runtime
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(testTimeout.Milliseconds()))
		}
		require.NoError(t, err)
		require.Equal(t, 1, n, "the child has ended")
		require.NoError(t, unix.Close(fd))
	}
	return len(fds)
}

// pidfds returns a descriptor for every child of a process.
func pidfds(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	var fds []int
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(b)) {
			var child int
			_, err := fmt.Sscan(f, &child)
			require.NoError(t, err)
			if fd, err := unix.PidfdOpen(child, 0); err == nil {
				fds = append(fds, fd)
			}
		}
	}
	return fds
}

// TestTwoRuntimesShareADataDirectory runs containers in two runtimes at once from one store.
func TestTwoRuntimesShareADataDirectory(t *testing.T) {
	shared.get(t)
	cfg := testConfig(t)
	a, b := newRuntime(t, cfg), newRuntime(t, cfg)
	loadBusybox(t, a)
	var wg sync.WaitGroup
	for _, rt := range []*arcbox.Runtime{a, b} {
		wg.Go(func() {
			if got := run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}); got.stdout != "fine\n" {
				t.Errorf("%+v", got)
			}
		})
	}
	wg.Wait()
}

// TestMachineThatDies kills QEMU under a running container: the waiters learn it, and the next container gets a new
// machine.
func TestMachineThatDies(t *testing.T) {
	shared.get(t)
	rt := newRuntime(t, testConfig(t))
	loadBusybox(t, rt)
	ctx := testContext(t)
	before := childPIDs(t)
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: sh("sleep 1000")}, arcbox.RunOptions{})
	require.NoError(t, err)
	for pid := range childPIDs(t) {
		if !before[pid] {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	_, err = p.Wait(ctx)
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	info, err := rt.InspectContainer(ctx, p.ID())
	require.NoError(t, err)
	require.Equal(t, arcbox.ContainerExited, info.State)
	require.NotEmpty(t, info.Reason)
	require.Equal(t, "fine\n", run(t, rt, arcbox.ContainerSpec{Args: sh("echo fine")}, arcbox.RunOptions{}).stdout)
}

func childPIDs(t *testing.T) map[int]bool {
	t.Helper()
	out := map[int]bool{}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(t, err)
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for f := range strings.FieldsSeq(string(b)) {
			var pid int
			_, err := fmt.Sscan(f, &pid)
			require.NoError(t, err)
			out[pid] = true
		}
	}
	return out
}
