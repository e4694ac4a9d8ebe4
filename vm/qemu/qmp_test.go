package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// qmpServer is the other end of a control socket: it greets, and serve answers each command.
type qmpServer struct {
	net.Conn
	commands chan map[string]any
}

func newQMPServer(t *testing.T, onEvent func(qmpEvent)) (*qmp, *qmpServer) {
	ours, theirs := net.Pipe()
	s := &qmpServer{Conn: theirs, commands: make(chan map[string]any, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		fmt.Fprintln(theirs, greeting)
		sc := bufio.NewScanner(theirs)
		for sc.Scan() {
			var m map[string]any
			if json.Unmarshal(sc.Bytes(), &m) != nil {
				return
			}
			if m["execute"] == "qmp_capabilities" {
				fmt.Fprintf(theirs, `{"return": {}, "id": %v}`+"\r\n", m["id"])
				continue
			}
			s.commands <- m
		}
	})
	q, err := newQMP(testContext(t), ours, true, onEvent)
	require.NoError(t, err)
	require.Equal(t, Version{7, 2, 22}, q.version)
	t.Cleanup(func() {
		q.close()
		theirs.Close()
		wg.Wait()
	})
	return q, s
}

func TestAnswersFindTheirCommands(t *testing.T) {
	events := make(chan qmpEvent, 1)
	q, s := newQMPServer(t, func(e qmpEvent) { events <- e })
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got struct{ Echo int }
			if err := q.execute(testContext(t), "echo", map[string]int{"n": i}, &got); err != nil || got.Echo != i {
				t.Error(err, got, i)
			}
		})
	}
	all := make([]map[string]any, n)
	for i := range all {
		all[i] = <-s.commands
	}
	fmt.Fprintln(s, `{"return": {"echo": 99}, "id": 12345}`) // of a command that nobody gave
	fmt.Fprintln(s, `{"event": "RESUME", "data": {"x": 1}, "timestamp": {"seconds": 1}}`)
	for i := range all { // the last first
		m := all[n-1-i]
		fmt.Fprintf(s, `{"return": {"echo": %v}, "id": %v}`+"\n", m["arguments"].(map[string]any)["n"], m["id"])
	}
	wg.Wait()
	require.Equal(t, "RESUME", (<-events).Name)
}

func TestRefusedCommand(t *testing.T) {
	q, s := newQMPServer(t, nil)
	go func() {
		m := <-s.commands
		fmt.Fprintf(s, `{"error": {"class": "DeviceNotFound", "desc": "no such thing"}, "id": %v}`+"\n", m["id"])
	}()
	err := q.execute(testContext(t), "device_del", nil, nil)
	var refused *qmpError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "DeviceNotFound", refused.Class)
	require.EqualError(t, err, "QEMU command device_del: no such thing")
}

func TestAnswerOfAnotherShape(t *testing.T) {
	q, s := newQMPServer(t, nil)
	go func() {
		m := <-s.commands
		fmt.Fprintf(s, `{"return": [1], "id": %v}`+"\n", m["id"])
	}()
	var into struct{ X int }
	require.ErrorContains(t, q.execute(testContext(t), "query-x", nil, &into), "decode answer")
}

func TestCommandEndsWithContext(t *testing.T) {
	q, s := newQMPServer(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() { failed <- q.execute(ctx, "query-x", nil, nil) }()
	late := <-s.commands
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	require.ErrorIs(t, q.execute(ctx, "query-x", nil, nil), context.Canceled)
	// The late answer disturbs nobody.
	fmt.Fprintf(s, `{"return": {}, "id": %v}`+"\n", late["id"])
	go func() {
		m := <-s.commands
		fmt.Fprintf(s, `{"return": {}, "id": %v}`+"\n", m["id"])
	}()
	require.NoError(t, q.execute(testContext(t), "query-y", nil, nil))
}

func TestCommandThatQEMUDoesNotRead(t *testing.T) {
	ours, theirs := net.Pipe() // takes nothing that is not read
	defer theirs.Close()
	go func() {
		fmt.Fprintln(theirs, greeting)
		bufio.NewReader(theirs).ReadString('\n')
		fmt.Fprintln(theirs, `{"return": {}, "id": 1}`)
	}()
	q, err := newQMP(testContext(t), ours, true, nil)
	require.NoError(t, err)
	defer q.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	other := make(chan error)
	go func() { other <- q.execute(ctx, "one", nil, nil) }()
	require.ErrorIs(t, q.execute(ctx, "two", nil, nil), context.DeadlineExceeded)
	require.ErrorIs(t, <-other, context.DeadlineExceeded)
}

func TestSocketEndsDuringCommand(t *testing.T) {
	for name, last := range map[string]string{"at a line's end": "", "within a line": `{"ret`, "after nonsense": "nonsense\n"} {
		t.Run(name, func(t *testing.T) {
			q, s := newQMPServer(t, nil)
			go func() {
				<-s.commands
				io.WriteString(s, last)
				s.Close()
			}()
			require.ErrorIs(t, q.execute(testContext(t), "query-x", nil, nil), errs.ErrUnavailable)
			<-q.done
			require.ErrorIs(t, q.execute(testContext(t), "query-x", nil, nil), errs.ErrUnavailable)
		})
	}
}

func FuzzQMP(f *testing.F) {
	f.Add(greeting + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n")
	f.Add(`{"QMP": null}` + "\n")
	f.Add(greeting + "\n" + `{"return": {}, "id": 1}` + "\n" + `{"event": "DEVICE_DELETED", "data": {"device": 7}}` + "\n[]\n{\"id\":-1}\n")
	f.Add(greeting + "\n" + `{"error": {}, "id": 1}` + "\n" + strings.Repeat("x", 20000))
	f.Fuzz(func(t *testing.T, sent string) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(io.Discard, theirs) })
		wg.Go(func() {
			io.WriteString(theirs, sent)
			theirs.Close()
		})
		i := &Instance{opened: make(chan struct{}), deleted: map[string]chan struct{}{"disk-x": make(chan struct{})}}
		i.log = New(Config{}).log
		q, err := newQMP(context.Background(), ours, true, i.event)
		if err == nil {
			var devs []struct{ Label string }
			if q.execute(context.Background(), "query-chardev", nil, &devs) == nil {
				t.Log("answered")
			}
			<-q.done
		}
		wg.Wait()
	})
}
