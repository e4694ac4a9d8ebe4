package arcbox_test

import (
	"context"
	"io"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// begin runs a script and removes its container after the test.
func begin(t *testing.T, rt *arcbox.Runtime, spec arcbox.ContainerSpec, script string) string {
	t.Helper()
	spec.Image, spec.Args = "busybox:test", sh(script)
	p, err := rt.RunContainer(testContext(t), spec, arcbox.RunOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveContainer(testContext(t), p.ID(), arcbox.RemoveOptions{Force: true}))
		require.NoError(t, p.Close())
	})
	return p.ID()
}

func TestDialAndWaitForPorts(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := begin(t, rt, arcbox.ContainerSpec{}, "mkdir /w; echo hello > /w/a; sleep 0.3; httpd -p 80 -h /w; nc -l -p 7 -e cat; sleep 1000")
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForListeningPort(80), arcbox.ForHTTP(80, "a", 0), arcbox.ForHTTP(80, "/no", 404)))
	conn, err := rt.Dial(ctx, id, "tcp", "localhost:7")
	if err != nil { // nc begins after the server
		require.ErrorIs(t, err, arcbox.ErrUnavailable)
		require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForCommand(0, "sh", "-c", "netstat -ltn | grep -q ':7 '")))
		conn, err = rt.Dial(ctx, id, "tcp", ":7")
	}
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "echo")
	require.NoError(t, err)
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "echo", string(b))

	_, err = rt.Dial(ctx, id, "tcp", "127.0.0.1:9")
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	_, err = rt.Dial(ctx, id, "tcp", "nowhere")
	require.ErrorIs(t, err, arcbox.ErrInvalid)
	other := begin(t, rt, arcbox.ContainerSpec{}, "sleep 1000")
	_, err = rt.Dial(ctx, other, "tcp", "127.0.0.1:80")
	require.ErrorIs(t, err, arcbox.ErrUnavailable, "each container has a network of its own")
}

func TestWaitForConditions(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := begin(t, rt, arcbox.ContainerSpec{
		Health: &arcbox.HealthCheck{Test: []string{"CMD-SHELL", "test -e /ok"}, Interval: 100 * time.Millisecond},
	}, "for i in 1 2 3; do echo line $i; echo err $i >&2; done; sleep 0.5; touch /ok; sleep 1000")
	for name, s := range map[string]arcbox.WaitStrategy{
		"log":     arcbox.ForLog("line", 3),
		"pattern": arcbox.ForLogMatch(regexp.MustCompile(`^err [3]`), 1),
		"command": arcbox.ForCommand(0, "test", "-e", "/ok"),
		"health":  arcbox.ForHealthy(),
		"all":     arcbox.ForAll(arcbox.ForLog("line 1", 1), arcbox.ForHealthy()),
		"any":     arcbox.ForAny(arcbox.ForLog("never", 1), arcbox.ForLog("line 2", 0)),
		"nothing": {},
	} {
		require.NoError(t, rt.WaitFor(ctx, id, s), name)
	}
	short := 500 * time.Millisecond
	err := rt.WaitFor(ctx, id, arcbox.ForLog("never", 1).WithTimeout(short))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, `"never"`)
	require.ErrorContains(t, err, "the last lines of its log:")
	require.ErrorContains(t, err, "line 3")
	err = rt.WaitFor(ctx, id, arcbox.ForAny(arcbox.ForListeningPort(81), arcbox.ForExit(0)).WithTimeout(short))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "port 81")
	require.ErrorIs(t, rt.WaitFor(ctx, "no-such", arcbox.ForHealthy()), arcbox.ErrNotFound)
	plain := begin(t, rt, arcbox.ContainerSpec{}, "sleep 1000")
	require.ErrorIs(t, rt.WaitFor(ctx, plain, arcbox.ForHealthy()), arcbox.ErrInvalid)
}

func TestWaitForEndsWithTheContainer(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := begin(t, rt, arcbox.ContainerSpec{}, "echo last words; exit 3")
	require.NoError(t, rt.WaitFor(ctx, id, arcbox.ForExit(3)))
	for name, s := range map[string]arcbox.WaitStrategy{
		"log": arcbox.ForLog("never", 1), "port": arcbox.ForListeningPort(80), "HTTP": arcbox.ForHTTP(80, "/", 200),
		"command": arcbox.ForCommand(0, "true"), "exit": arcbox.ForExit(0),
		"all": arcbox.ForAll(arcbox.ForExit(3), arcbox.ForLog("never", 1)),
	} {
		err := rt.WaitFor(ctx, id, s)
		require.ErrorIs(t, err, arcbox.ErrConflict, name)
		require.ErrorContains(t, err, "exited", name)
		require.ErrorContains(t, err, "last words", name)
	}
}

// TestWaitForAcrossRuns waits from before the start of a container until it has been restarted by its policy.
func TestWaitForAcrossRuns(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{
		Image: "busybox:test", Restart: arcbox.RestartPolicy{Name: arcbox.RestartOnFailure},
		Args: sh("echo begin; test -e /f || { touch /f; exit 1; }; mkdir /w; echo hi > /w/a; httpd -p 80 -h /w; echo good; sleep 1000"),
	}, arcbox.CreateOptions{})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- rt.WaitFor(ctx, info.ID, arcbox.ForLog("good", 1), arcbox.ForLog("begin", 2), arcbox.ForHTTP(80, "a", 0))
	}()
	require.NoError(t, rt.StartContainer(ctx, info.ID))
	require.NoError(t, <-done)

	gone := make(chan error, 1)
	go func() { gone <- rt.WaitFor(ctx, info.ID, arcbox.ForListeningPort(81)) }()
	require.NoError(t, rt.RemoveContainer(ctx, info.ID, arcbox.RemoveOptions{Force: true}))
	require.Error(t, <-gone, "it was removed")
}

func TestWaitForThatDoesNotCome(t *testing.T) {
	rt := shared.get(t)
	id := begin(t, rt, arcbox.ContainerSpec{}, "echo words; sleep 1000")
	require.NoError(t, rt.WaitFor(testContext(t), id, arcbox.ForLog("words", 1)))
	never, short := arcbox.ForLog("never", 1), 200*time.Millisecond
	for name, s := range map[string]arcbox.WaitStrategy{
		"all": arcbox.ForAll(never, arcbox.ForListeningPort(81)).WithTimeout(short),
		"any": arcbox.ForAny(never.WithTimeout(short), arcbox.ForListeningPort(81).WithTimeout(short)),
	} {
		err := rt.WaitFor(context.Background(), id, s)
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.ErrorContains(t, err, `"never"`, name)
		require.ErrorContains(t, err, "port 81", name)
		require.ErrorContains(t, err, "words", name)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	time.AfterFunc(short, cancel)
	err := rt.WaitFor(ctx, id, never)
	require.ErrorIs(t, err, context.Canceled)
	require.NotContains(t, err.Error(), "words")
	require.ErrorIs(t, rt.WaitFor(testContext(t), id, arcbox.ForLogMatch(nil, 1)), arcbox.ErrInvalid)
	require.Equal(t, "HTTP status 200 to 299 of /a on port 80", arcbox.ForHTTP(80, "a", 0).String())
}
