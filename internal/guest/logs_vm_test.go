package guest_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// readLog returns the lines of a log, each with O or E for its stream before it.
func (m *machine) readLog(t testing.TB, req api.LogsRequest) (lines []string) {
	t.Helper()
	l, err := m.Logs(testContext(t), req)
	require.NoError(t, err)
	defer l.Close()
	for {
		rec, err := l.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), rec.At, time.Hour)
		stream := "O"
		if rec.Stderr {
			stream = "E"
		}
		if rec.Lost > 0 {
			stream = "lost"
		}
		lines = append(lines, stream+string(rec.Line))
	}
}

func TestLogs(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "for i in 1 2 3 4 5; do echo out $i; done; echo err >&2; read x; echo got $x; head -c 20000 /dev/zero | tr '\\0' x"}, withStdin)
	m.create(t, req)
	l, err := m.Logs(ctx, api.LogsRequest{ID: req.ID, Stdout: true, Stderr: true, Follow: true}) // before the start
	require.NoError(t, err)
	defer l.Close()
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: true}, nil, nil)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	for range 6 {
		_, err := l.Next()
		require.NoError(t, err)
	}
	io.WriteString(p.Stdin(), "it\n")
	rec, err := l.Next()
	require.NoError(t, err)
	require.Equal(t, "got it\n", string(rec.Line))
	for _, n := range []int{16 << 10, 20000 - 16<<10} {
		rec, err := l.Next()
		require.NoError(t, err)
		require.Len(t, rec.Line, n)
	}
	_, err = l.Next()
	require.Equal(t, io.EOF, err)
	require.Equal(t, []string{"Eerr\n"}, m.readLog(t, api.LogsRequest{ID: req.ID, Stderr: true}))
	require.Equal(t, "Ogot it\n", m.readLog(t, api.LogsRequest{ID: req.ID, Stdout: true, Tail: 3})[0])
}

func TestFullLogIsBoundedAndDoesNotStopItsContainer(t *testing.T) {
	m := useMachine(t)
	req := request(t, []string{"sh", "-c", "i=0; while [ $i -lt 200 ]; do head -c 20000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo end"},
		func(r *api.CreateRequest) { r.Log = api.LogLimits{MaxSize: 1, MaxFiles: 2} })
	m.create(t, req)
	ctx := testContext(t)
	_, err := m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	_, err = m.Wait(ctx, api.WaitRequest{ID: req.ID})
	require.NoError(t, err)
	lines := m.readLog(t, api.LogsRequest{ID: req.ID, Stdout: true})
	require.Equal(t, "Oend\n", lines[len(lines)-1])
	require.Less(t, len(strings.Join(lines, "")), 300_000)
}

// A container that fills its disk loses log records, is not held up, and its log says how much is missing.
func TestLogOnAFullDisk(t *testing.T) {
	m := useMachine(t)
	req := request(t, []string{"sh", "-c", "dd if=/dev/zero of=/fill bs=1M 2>/dev/null; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; rm /fill; echo end"})
	m.create(t, req)
	ctx := testContext(t)
	_, err := m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	_, err = m.Wait(ctx, api.WaitRequest{ID: req.ID})
	require.NoError(t, err)
	lines := m.readLog(t, api.LogsRequest{ID: req.ID, Stdout: true})
	require.Contains(t, lines, "lost", fmt.Sprint(len(lines), " lines"))
	require.Equal(t, "Oend\n", lines[len(lines)-1])
}
