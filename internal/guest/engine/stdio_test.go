package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// collect reads a subscriber to its end.
func collect(s *subscriber) map[api.FrameType]string {
	out := make(map[api.FrameType]string)
	for {
		c, ok := s.next()
		if !ok {
			return out
		}
		out[c.kind] += string(c.data)
	}
}

// pipes are the stdio of a process without stdin.
func pipes() (o *stdio, stdout, stderr net.Conn) {
	outR, outW := net.Pipe()
	errR, errW := net.Pipe()
	o = newStdio(Stdio{Stdout: outR, Stderr: errR}, nil)
	o.run()
	return o, outW, errW
}

func TestSubscribersGetAllFromTheirSubscriptionOn(t *testing.T) {
	o, stdout, stderr := pipes()
	early := o.subscribe()
	io.WriteString(stdout, "one ")
	first, ok := early.next()
	require.True(t, ok)
	require.Equal(t, "one ", string(first.data))
	late := o.subscribe()
	io.WriteString(stdout, "two")
	io.WriteString(stderr, "bad")
	stdout.Close()
	stderr.Close()
	o.finish(api.Exit{Code: 3}, func() {})
	want := map[api.FrameType]string{api.FrameStdout: "two", api.FrameStderr: "bad"}
	require.Equal(t, want, collect(early))
	require.Equal(t, want, collect(late))
	for _, s := range []*subscriber{early, late, o.subscribe()} {
		exit, ok := s.exit()
		require.True(t, ok)
		require.Equal(t, 3, exit.Code)
	}
	early.close()
	early.close()
	_, ok = early.exit()
	require.False(t, ok)
}

func TestFullSubscriberHoldsTheProcessUntilItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, stdout, stderr := pipes()
		slow := o.subscribe()
		written := make(chan int, 1)
		go func() {
			n := 0
			for range 100 {
				k, err := stdout.Write(make([]byte, api.ChunkSize))
				n += k
				if err != nil {
					break
				}
			}
			written <- n
		}()
		synctest.Wait()
		select {
		case n := <-written:
			t.Fatalf("%d bytes went to nobody", n)
		default:
		}
		require.LessOrEqual(t, slow.queued, maxQueued+api.ChunkSize+frameCost)
		slow.close()
		require.Equal(t, 100*api.ChunkSize, <-written)
		stdout.Close()
		stderr.Close()
		o.finish(api.Exit{}, func() {})
	})
}

func TestExitDoesNotWaitForASlowSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, stdout, stderr := pipes()
		slow := o.subscribe()
		go func() {
			for range 20 {
				stdout.Write(make([]byte, api.ChunkSize))
			}
			stdout.Close()
		}()
		synctest.Wait()
		stderr.Close()
		o.finish(api.Exit{}, func() {}) // returns, with all of the output in the queue
		require.Equal(t, 20*api.ChunkSize, len(collect(slow)[api.FrameStdout]))
	})
}

func TestExitDoesNotWaitForEverForAnOpenPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, stdout, stderr := pipes()
		s := o.subscribe()
		stderr.Close()
		go io.WriteString(stdout, "last words") // and then silence: somebody holds the pipe
		began := time.Now()
		o.finish(api.Exit{}, func() {})
		require.LessOrEqual(t, time.Since(began), 3*drainTime)
		require.Equal(t, "last words", collect(s)[api.FrameStdout])
	})
}

// slowStdin is a process that reads its stdin when it is told to.
type slowStdin struct {
	bytes.Buffer
	read   chan struct{}
	closed chan struct{}
}

func (s *slowStdin) Write(p []byte) (int, error) {
	select {
	case <-s.read:
		return s.Buffer.Write(p)
	case <-s.closed:
		return 0, errors.New("closed")
	}
}

func (s *slowStdin) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

func TestInputWaitsForTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &slowStdin{read: make(chan struct{}), closed: make(chan struct{})}
		in := newInput(Stdio{Stdin: p})
		done := make(chan struct{})
		go func() {
			for range 20 {
				in.write(make([]byte, 32<<10))
			}
			in.end()
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("more was queued than the bound")
		default:
		}
		for range 20 {
			p.read <- struct{}{}
		}
		<-done
		<-p.closed // the end of input
		require.Equal(t, 20*32<<10, p.Len())
		in.write([]byte("dropped"))
		in.close()
		in.close()
	})
}

func TestInputEndsWithTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &slowStdin{read: make(chan struct{}), closed: make(chan struct{})}
		in := newInput(Stdio{Stdin: p})
		done := make(chan struct{})
		go func() {
			for range 100 {
				in.write(make([]byte, 32<<10))
			}
			close(done)
		}()
		synctest.Wait()
		in.close() // nobody reads any more: the writer is not stuck
		<-done
	})
}

func TestEndOfInputOfATerminal(t *testing.T) {
	p := &slowStdin{read: make(chan struct{}, 10), closed: make(chan struct{})}
	p.read <- struct{}{}
	p.read <- struct{}{}
	typed := make(chan struct{}, 2)
	in := newInput(Stdio{Stdin: p, EOF: func() error { typed <- struct{}{}; return nil }})
	in.write([]byte("a"))
	in.end()
	<-typed
	in.write([]byte("b")) // a terminal stays open
	in.end()
	<-typed
	in.close()
	require.Equal(t, "ab", p.String())
}

func TestEventsOfASlowSubscriber(t *testing.T) {
	var b broker
	s, err := b.subscribe()
	require.NoError(t, err)
	for i := range maxEvents + 10 {
		b.publish(api.Event{Kind: api.EventExit, ID: fmt.Sprint(i)})
	}
	events, err := s.take(t.Context())
	require.NoError(t, err)
	require.Len(t, events, maxEvents)
	require.Equal(t, fmt.Sprint(maxEvents-2), events[maxEvents-2].ID)
	require.Equal(t, api.EventLost, events[maxEvents-1].Kind)
	require.Equal(t, 11, events[maxEvents-1].Dropped)
	b.publish(api.Event{ID: "next"})
	events, err = s.take(t.Context())
	require.NoError(t, err)
	require.Equal(t, "next", events[0].ID)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.take(ctx)
	require.ErrorIs(t, err, context.Canceled)

	for range maxSubscribers - 1 {
		_, err := b.subscribe()
		require.NoError(t, err)
	}
	_, err = b.subscribe()
	require.ErrorIs(t, err, errs.ErrUnavailable)
	s.close()
	_, err = b.subscribe()
	require.NoError(t, err)
}

func TestStateNames(t *testing.T) {
	for s := creating; s <= removed; s++ {
		require.NotEmpty(t, strings.TrimSpace(s.String()))
	}
}
