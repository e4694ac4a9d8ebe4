package arcbox_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

func TestRunPrintsAndExits(t *testing.T) {
	rt := shared.get(t)
	got := run(t, rt, arcbox.ContainerSpec{
		Hostname: "box", Args: sh("uname -r; hostname; echo $$; echo oops >&2; exit 7"),
	}, arcbox.RunOptions{})
	lines := strings.Split(got.stdout, "\n")
	require.Len(t, lines, 4, got.stdout)
	require.Regexp(t, `^\d+\.\d+\.`, lines[0])
	require.Equal(t, []string{"box", "1", ""}, lines[1:])
	require.Equal(t, "oops\n", got.stderr)
	require.Equal(t, arcbox.Exit{Code: 7}, got.exit)
}

func TestImageConfigIsHonoured(t *testing.T) {
	rt := shared.get(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	img.Names = []string{"config:test"}
	img.Config = ocispec.ImageConfig{
		Entrypoint: []string{"/bin/sh", "-c"},
		Cmd:        []string{`echo "$A|$(pwd)|$(id -un):$(id -gn)|$HOME"`},
		Env:        []string{"PATH=/bin", "A=from image"},
		WorkingDir: "/work/deep", User: "user", StopSignal: "SIGUSR1", Labels: map[string]string{"l": "v"},
	}
	load(t, rt, img)
	got := run(t, rt, arcbox.ContainerSpec{Image: "config:test"}, arcbox.RunOptions{})
	require.Equal(t, "from image|/work/deep|user:user|/home/user\n", got.stdout, got.stderr)

	got = run(t, rt, arcbox.ContainerSpec{
		Image: "config:test", Env: []string{"A=mine"}, WorkingDir: "/", User: "0:1000",
	}, arcbox.RunOptions{})
	require.Equal(t, "mine|/|root:user|/root\n", got.stdout, got.stderr)

	ctx := testContext(t)
	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "config:test"}, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, "SIGUSR1", info.StopSignal)
	require.Equal(t, map[string]string{"l": "v"}, info.Labels)
	require.NoError(t, rt.RemoveContainer(ctx, info.ID, arcbox.RemoveOptions{}))
}

func TestLayersAreStacked(t *testing.T) {
	rt := shared.get(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	img.Names = []string{"layers:test"}
	img.Layers = append(img.Layers,
		imagetest.Files(t, map[string]imagetest.File{
			"d/keep": {Data: []byte("1")}, "d/gone": {Data: []byte("1")}, "o/hidden": {Data: []byte("1")}, "d/changed": {Data: []byte("1")},
		}),
		imagetest.Files(t, map[string]imagetest.File{
			"d/.wh.gone": {}, "d/changed": {Data: []byte("2")}, "o/.wh..wh..opq": {}, "o/new": {Data: []byte("2")},
			"l": {Type: tar.TypeSymlink, Link: "d/changed", Mode: 0o777},
		}))
	load(t, rt, img)
	got := run(t, rt, arcbox.ContainerSpec{Image: "layers:test", Args: sh("ls d o; cat l; echo 3 > d/keep && cat d/keep")}, arcbox.RunOptions{})
	require.Equal(t, "d:\nchanged\nkeep\n\no:\nnew\n23\n", got.stdout, got.stderr)
	got = run(t, rt, arcbox.ContainerSpec{Image: "layers:test", Args: sh("cat d/keep")}, arcbox.RunOptions{})
	require.Equal(t, "1", got.stdout, "what a container writes is its own")
}

func TestStdinReachesTheProcess(t *testing.T) {
	rt := shared.get(t)
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	got := run(t, rt, arcbox.ContainerSpec{Args: []string{"sha256sum"}, Stdin: true}, arcbox.RunOptions{Stdin: bytes.NewReader(data)})
	require.Equal(t, fmt.Sprintf("%x  -\n", sha256.Sum256(data)), got.stdout, got.stderr)

	got = run(t, rt, arcbox.ContainerSpec{Args: []string{"cat"}}, arcbox.RunOptions{})
	require.Empty(t, got.stdout, "without Stdin the process reads an empty one")
	require.Zero(t, got.exit.Code)
}

func TestLargeOutputIsWhole(t *testing.T) {
	rt := shared.get(t)
	got := run(t, rt, arcbox.ContainerSpec{Args: sh("seq 1 400000; seq 1 1000 >&2")}, arcbox.RunOptions{})
	require.Equal(t, 400_000, strings.Count(got.stdout, "\n"))
	require.True(t, strings.HasSuffix(got.stdout, "\n399999\n400000\n"))
	require.True(t, strings.HasSuffix(got.stderr, "\n999\n1000\n"))
}

func TestTerminal(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	pr, pw := io.Pipe()
	out := newMatcher()
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{
		Image: "busybox:test", TTY: true, Stdin: true, AutoRemove: true,
		Args: sh("tty; stty size; read x; stty size; echo got $x; exit 3"),
	}, arcbox.RunOptions{Stdin: pr, Stdout: out, Rows: 40, Cols: 100})
	require.NoError(t, err)
	require.NoError(t, out.wait(ctx, "40 100"))
	require.NoError(t, p.Resize(ctx, 50, 120))
	_, err = io.WriteString(pw, "line\n")
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, exit.Code)
	require.Contains(t, out.String(), "/dev/pts/0")
	require.Contains(t, out.String(), "50 120\r\ngot line\r\n")
	require.NoError(t, pw.Close())
}

// matcher is a writer that tells when a text has come.
type matcher struct {
	consoleLog
	more chan struct{}
}

func newMatcher() *matcher { return &matcher{more: make(chan struct{}, 1)} }

func (m *matcher) Write(p []byte) (int, error) {
	n, err := m.consoleLog.Write(p)
	select {
	case m.more <- struct{}{}:
	default:
	}
	return n, err
}

func (m *matcher) wait(ctx context.Context, text string) error {
	for !strings.Contains(m.String(), text) {
		select {
		case <-m.more:
		case <-ctx.Done():
			return fmt.Errorf("no %q in %q: %w", text, m.String(), ctx.Err())
		}
	}
	return nil
}

func TestCommandNotFoundAndNotExecutable(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	tests := []struct {
		name string
		args []string
		want error
		code int
	}{
		{"no such command", []string{"no-such-command"}, arcbox.ErrCommandNotFound, 127},
		{"no such path", []string{"/no/such"}, arcbox.ErrCommandNotFound, 127},
		{"not executable", []string{"/etc/passwd"}, arcbox.ErrCommandNotExecutable, 126},
		{"directory", []string{"/etc"}, arcbox.ErrCommandNotExecutable, 126},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: tt.args}, arcbox.CreateOptions{})
			require.NoError(t, err)
			err = rt.StartContainer(ctx, info.ID)
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, tt.args[0])
			exit, err := rt.WaitContainer(ctx, info.ID, arcbox.WaitOptions{})
			require.NoError(t, err)
			require.Equal(t, tt.code, exit.Code)
			require.NoError(t, rt.RemoveContainer(ctx, info.ID, arcbox.RemoveOptions{}))
		})
	}
}

func TestSignals(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	for _, tt := range []struct {
		signal, script string
		want           arcbox.Exit
	}{
		{"TERM", `trap 'exit 42' TERM; echo ready; while :; do sleep 1; done`, arcbox.Exit{Code: 42}},
		{"SIGKILL", `echo ready; exec sleep 1000`, arcbox.Exit{Code: 137, Signal: "KILL"}},
		{"", `echo ready; exec sleep 1000`, arcbox.Exit{Code: 137, Signal: "KILL"}},
	} {
		t.Run("signal "+tt.signal, func(t *testing.T) {
			out := newMatcher()
			p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: sh(tt.script)}, arcbox.RunOptions{Stdout: out})
			require.NoError(t, err)
			require.NoError(t, out.wait(ctx, "ready"))
			require.ErrorIs(t, rt.KillContainer(ctx, p.ID(), "NONSENSE"), arcbox.ErrInvalid)
			require.NoError(t, rt.KillContainer(ctx, p.ID(), tt.signal))
			exit, err := p.Wait(ctx)
			require.NoError(t, err)
			require.Equal(t, tt.want, exit)
			require.ErrorIs(t, rt.KillContainer(ctx, p.ID(), "TERM"), arcbox.ErrConflict)
			require.NoError(t, rt.RemoveContainer(ctx, p.ID(), arcbox.RemoveOptions{}))
		})
	}
}

func TestContainersRunSideBySide(t *testing.T) {
	rt := shared.get(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			got := run(t, rt, arcbox.ContainerSpec{Args: sh(fmt.Sprintf("echo %d; ps | wc -l; exit %d", i, i))}, arcbox.RunOptions{})
			if got.exit.Code != i || !strings.HasPrefix(got.stdout, fmt.Sprint(i, "\n")) {
				t.Errorf("container %d: %+v", i, got)
			}
		})
	}
	wg.Wait()
}

func TestAttachAndDetach(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Stdin: true, Args: []string{"cat"}}, arcbox.CreateOptions{})
	require.NoError(t, err)
	one := newMatcher()
	pr, pw := io.Pipe()
	p1, err := rt.AttachContainer(ctx, info.ID, arcbox.AttachOptions{Stdin: pr, Stdout: one})
	require.NoError(t, err)
	require.NoError(t, rt.StartContainer(ctx, info.ID))
	_, err = io.WriteString(pw, "first\n")
	require.NoError(t, err)
	require.NoError(t, one.wait(ctx, "first\n"))

	two := newMatcher()
	p2, err := rt.AttachContainer(ctx, info.ID, arcbox.AttachOptions{Stdout: two})
	require.NoError(t, err)
	_, err = io.WriteString(pw, "second\n")
	require.NoError(t, err)
	require.NoError(t, two.wait(ctx, "second\n"))
	require.NoError(t, p2.Close())
	_, err = p2.Wait(ctx)
	require.ErrorIs(t, err, arcbox.ErrClosed)

	require.NoError(t, pw.Close(), "the end of stdin reaches the process")
	exit, err := p1.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Equal(t, "first\nsecond\n", one.String())
	require.Equal(t, "second\n", two.String())
	require.NoError(t, rt.RemoveContainer(ctx, info.ID, arcbox.RemoveOptions{}))
}

func TestEventsTellTheLifeOfAContainer(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	events := rt.Events(ctx, arcbox.EventsOptions{})
	run(t, rt, arcbox.ContainerSpec{Name: "watched", Args: sh("exit 5")}, arcbox.RunOptions{})
	var kinds []event.Kind
	for e := range events {
		if e.Name != "watched" {
			continue
		}
		kinds = append(kinds, e.Kind)
		if e.Kind == event.ContainerExited {
			require.Equal(t, "5", e.Attributes[event.AttrExitCode])
		}
		if e.Kind == event.ContainerRemoved {
			break
		}
	}
	require.Equal(t, []event.Kind{event.ContainerCreated, event.ContainerStarted, event.ContainerExited, event.ContainerRemoved}, kinds)
}

func TestBadSpecsAreRefusedBeforeAnythingIsMade(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	before, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		spec arcbox.ContainerSpec
		opts arcbox.CreateOptions
		want error
	}{
		"no image":      {arcbox.ContainerSpec{}, arcbox.CreateOptions{}, arcbox.ErrInvalid},
		"bad reference": {arcbox.ContainerSpec{Image: "UPPER case"}, arcbox.CreateOptions{}, arcbox.ErrInvalid},
		"unknown image": {arcbox.ContainerSpec{Image: "nope:1"}, arcbox.CreateOptions{Pull: arcbox.PullNever}, arcbox.ErrNotFound},
		"bad policy":    {arcbox.ContainerSpec{Image: "busybox:test"}, arcbox.CreateOptions{Pull: "x"}, arcbox.ErrInvalid},
		"taken name":    {arcbox.ContainerSpec{Name: "keep", Image: "busybox:test"}, arcbox.CreateOptions{}, arcbox.ErrExists},
		"bad name":      {arcbox.ContainerSpec{Name: "a/b", Image: "busybox:test"}, arcbox.CreateOptions{}, arcbox.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rt.CreateContainer(ctx, tt.spec, tt.opts)
			require.ErrorIs(t, err, tt.want)
			var e *arcbox.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, "CreateContainer", e.Op)
		})
	}
	after, err := rt.ListContainers(ctx, arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Equal(t, before, after)
}
