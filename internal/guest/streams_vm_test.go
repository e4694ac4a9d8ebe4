package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

func withStdin(r *api.CreateRequest) { r.Process.Stdin = true }

func withTTY(r *api.CreateRequest) {
	r.Process.Stdin, r.Process.TTY, r.Process.Size = true, true, api.Size{Rows: 30, Cols: 100}
}

func TestStdinAndOutputAreExact(t *testing.T) {
	m := useMachine(t)
	data := make([]byte, 3<<20+17)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	r, err := m.run(t, request(t, []string{"cat"}, withStdin), string(data))
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(data), sha256.Sum256([]byte(r.stdout)))
}

func TestOutputBeforeTheExitIsComplete(t *testing.T) {
	m := useMachine(t)
	for i := range 5 {
		r, err := m.run(t, request(t, []string{"sh", "-c", "head -c 300000 /dev/zero; head -c 100000 /dev/zero >&2"},
			func(r *api.CreateRequest) { r.ID = fmt.Sprint("complete", i) }), "")
		require.NoError(t, err)
		require.Equal(t, []int{300000, 100000}, []int{len(r.stdout), len(r.stderr)})
	}
}

func TestNoStdinIsEmpty(t *testing.T) {
	require.Equal(t, "0\n", useMachine(t).sh(t, "wc -c"))
}

// lines is a writer whose lines can be waited for.
type lines struct {
	mu   sync.Mutex
	all  bytes.Buffer
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) await(t testing.TB, text string) {
	t.Helper()
	ctx := testContext(t)
	for {
		l.mu.Lock()
		got := l.all.String()
		l.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-l.more:
		case <-ctx.Done():
			t.Fatalf("no %q in %q", text, got)
		}
	}
}

func TestTerminal(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", `
		tty; stty size; ls -l /dev/console >/dev/null && echo console
		test "$(stat -c %u /dev/pts/0)" = 1000 && echo mine
		trap 'stty size' WINCH
		trap 'echo interrupted; trap - INT' INT
		echo ready
		while read line; do echo "got $line"; done
		read line
		echo end`}, withTTY, withUser("1000"))
	m.create(t, req)
	out := newLines()
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: true}, out, nil)
	require.NoError(t, err)
	defer p.Close()
	_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	out.await(t, "/dev/pts/0\r\n30 100\r\nconsole\r\nmine\r\nready\r\n")
	_, err = io.WriteString(p.Stdin(), "hello\n")
	require.NoError(t, err)
	out.await(t, "got hello\r\n")
	require.NoError(t, p.Resize(api.Size{Rows: 11, Cols: 22}))
	out.await(t, "11 22\r\n")
	_, err = p.Stdin().Write([]byte{3}) // ctrl-C
	require.NoError(t, err)
	out.await(t, "interrupted\r\n")
	require.NoError(t, p.Stdin().Close()) // types the end of input
	out.await(t, "end\r\n")
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit)
}

func TestSignals(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	for name, tc := range map[string]struct {
		signal string
		want   api.Exit
	}{
		"handled":     {"TERM", api.Exit{Code: 5}},
		"by number":   {"15", api.Exit{Code: 5}},
		"long name":   {"sigterm", api.Exit{Code: 5}},
		"not handled": {"KILL", api.Exit{Code: 137, Signal: "KILL"}},
		"real-time":   {"RTMIN+3", api.Exit{Code: 6}},
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, []string{"sh", "-c", "trap 'exit 5' TERM; trap 'exit 6' 37; echo ready; while :; do sleep 1000 & wait; done"})
			m.create(t, req)
			out := newLines()
			p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID}, out, nil)
			require.NoError(t, err)
			defer p.Close()
			require.ErrorIs(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: tc.signal}), errs.ErrConflict)
			rep, err := m.Start(ctx, api.StartRequest{ID: req.ID})
			require.NoError(t, err)
			require.Positive(t, rep.PID)
			_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
			require.ErrorIs(t, err, errs.ErrConflict)
			require.ErrorIs(t, m.Create(ctx, req), errs.ErrExists)
			require.ErrorIs(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID}), errs.ErrConflict)
			require.ErrorIs(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "FOO"}), errs.ErrInvalid)
			out.await(t, "ready")
			require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: tc.signal}))
			w, err := m.Wait(ctx, api.WaitRequest{ID: req.ID})
			require.NoError(t, err)
			require.Equal(t, tc.want, w.Exit)
			exit, err := p.Wait(ctx)
			require.NoError(t, err)
			require.Equal(t, tc.want, exit)
			require.ErrorIs(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "KILL"}), errs.ErrConflict)
		})
	}
}

func TestGrandchildrenEndWithTheContainer(t *testing.T) {
	m := useMachine(t)
	r, err := m.run(t, request(t, []string{"probe", "child"}), "")
	require.NoError(t, err)
	require.Equal(t, "<nil>\n", r.stdout)
	require.Zero(t, r.exit)
}

func TestEventsTellOfEveryExit(t *testing.T) {
	m := useMachine(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	events, err := m.Events(ctx)
	require.NoError(t, err)
	want := map[string]int{}
	for i := range 5 {
		id := fmt.Sprint("event", i)
		want[id] = i
		_, err := m.run(t, request(t, []string{"sh", "-c", fmt.Sprint("exit ", i)}, func(r *api.CreateRequest) { r.ID = id }), "")
		require.NoError(t, err)
	}
	got := map[string]int{}
	for len(got) < len(want) {
		e := <-events
		require.Equal(t, api.EventExit, e.Kind)
		got[e.ID] = e.Exit.Code
	}
	require.Equal(t, want, got)
}

func TestDiskThatComesLater(t *testing.T) {
	m := useMachine(t)
	disks := m.inst.(vm.DiskAttacher)
	path := filepath.Join(m.dir, "later")
	require.NoError(t, writeLayer(path, []file{{name: "later", mode: 0o644, body: "late\n"}}))
	ctx, cancel := context.WithCancel(testContext(t))
	req := request(t, []string{"cat", "/later"}, layers("base", "later"))
	early := req // a container of its own: the agent may hear late of its creation, and of its end
	early.ID += "-early"
	done := make(chan error)
	go func() { done <- m.Create(ctx, early) }()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	for range 2 { // a disk that goes is forgotten: the same serial can come again
		go func() { done <- m.Create(testContext(t), req) }()
		require.NoError(t, disks.AttachDisk(testContext(t), vm.Disk{ID: "later", Path: path, ReadOnly: true}))
		require.NoError(t, <-done)
		require.NoError(t, m.Remove(testContext(t), api.RemoveRequest{ID: req.ID}))
		r, err := m.run(t, req, "")
		require.NoError(t, err)
		require.Equal(t, "late\n", r.stdout)
		require.NoError(t, disks.DetachDisk(testContext(t), "later"))
	}
}

func TestLayerThatIsNotAFileSystem(t *testing.T) {
	m := useMachine(t)
	path := filepath.Join(m.dir, "garbage")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("garbage!"), 1<<16), 0o600))
	require.NoError(t, m.inst.(vm.DiskAttacher).AttachDisk(testContext(t), vm.Disk{ID: "garbage", Path: path, ReadOnly: true}))
	for range 2 {
		err := m.Create(testContext(t), request(t, []string{"true"}, layers("base", "garbage")))
		require.ErrorIs(t, err, errs.ErrCorrupt)
	}
	require.NoError(t, m.inst.(vm.DiskAttacher).DetachDisk(testContext(t), "garbage"))
}
