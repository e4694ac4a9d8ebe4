package engine

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/logs"
)

// The bounds of a process's stdio.
const (
	maxQueued = 256 << 10 // bytes of output that wait for one subscriber
	maxInput  = 256 << 10 // bytes of input that wait for the process
	// frameCost is what a frame in a queue counts on top of its bytes, so that many small ones are bounded too.
	frameCost = 64
	// drainTime is how long the output of a process that has ended may stay silent before it counts as read: something
	// else may hold the other end open for ever.
	drainTime = time.Second
)

// stdio hands the output of a process to its subscribers and their input to the process.
//
// A subscriber that does not keep up slows the process down, as a full pipe would; it never slows the agent or another
// container. Output that comes while there is no subscriber is dropped. When the process has ended, what is left in its
// pipes is read at once whatever the subscribers do: it is bounded by the size of a pipe.
type stdio struct {
	ends  Stdio
	input *input
	log   *logs.Log // nil where the output is not kept

	mu    sync.Mutex
	space sync.Cond // a queue got shorter, a subscriber left, the process ended
	subs  map[*subscriber]struct{}
	ended bool // the process has ended
	over  bool // all output was read, exit is set
	exit  api.Exit
	pumps sync.WaitGroup
}

// subscriber is one who gets all output from its subscription on, in order, then the exit.
type subscriber struct {
	io     *stdio
	wake   sync.Cond
	queue  []chunk
	queued int
	closed bool
}

type chunk struct {
	kind api.FrameType
	data []byte // shared by all subscribers, never changed
}

// newStdio returns what hands on nothing yet: run begins. All output is kept in log, where it is not nil.
func newStdio(ends Stdio, log *logs.Log) *stdio {
	o := &stdio{ends: ends, log: log, subs: make(map[*subscriber]struct{})}
	o.space.L = &o.mu
	if ends.Stdin != nil {
		o.input = newInput(ends)
	}
	return o
}

// run reads the output from now on, until finish is called and all of it was read.
func (o *stdio) run() {
	for _, p := range []struct {
		kind api.FrameType
		r    Reader
	}{{api.FrameStdout, o.ends.Stdout}, {api.FrameStderr, o.ends.Stderr}} {
		if p.r != nil {
			o.pumps.Go(func() { o.pump(p.kind, p.r) })
		}
	}
}

// pump reads r to its end, or after the process has ended until it is silent.
func (o *stdio) pump(kind api.FrameType, r Reader) {
	defer r.Close()
	buf := make([]byte, api.ChunkSize)
	for {
		o.mu.Lock()
		ended := o.ended
		if ended {
			_ = r.SetReadDeadline(time.Now().Add(drainTime))
		}
		o.mu.Unlock()
		n, err := r.Read(buf)
		if n > 0 {
			at := time.Now()
			kept := o.publish(kind, buf[:n])
			if o.log != nil {
				o.log.Write(kind == api.FrameStderr, at, buf[:n]) // while it is sent
			}
			if kept {
				buf = make([]byte, api.ChunkSize)
			}
			o.wait()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !ended {
			continue // finish cut this read short: once more, in case there is something
		}
		if err != nil {
			return
		}
	}
}

// publish hands p to the subscribers. It returns whether they keep p itself, and not a copy: p must not change then.
func (o *stdio) publish(kind api.FrameType, p []byte) (kept bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.subs) == 0 {
		return false
	}
	kept = len(p) > api.ChunkSize/2 // a queue of small ones must not hold large memory
	if !kept {
		p = bytes.Clone(p)
	}
	c := chunk{kind, p}
	for s := range o.subs {
		s.queue = append(s.queue, c)
		s.queued += len(c.data) + frameCost
		s.wake.Signal()
	}
	return kept
}

// wait returns when there is room for more output, or the process has ended.
func (o *stdio) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.ended && o.full() {
		o.space.Wait()
	}
}

func (o *stdio) full() bool {
	for s := range o.subs {
		if s.queued >= maxQueued {
			return true
		}
	}
	return false
}

// finish is called once when the process has ended. It reads what is left of the output, calls settled, and tells the
// subscribers.
func (o *stdio) finish(exit api.Exit, settled func()) {
	o.mu.Lock()
	o.ended = true
	o.space.Broadcast()
	for _, r := range []Reader{o.ends.Stdout, o.ends.Stderr} {
		if r != nil {
			_ = r.SetReadDeadline(time.Now().Add(drainTime))
		}
	}
	o.mu.Unlock()
	if o.input != nil {
		o.input.close()
	}
	o.pumps.Wait()
	if o.log != nil {
		o.log.Close()
	}
	settled()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over, o.exit = true, exit
	for s := range o.subs {
		s.wake.Signal()
	}
}

func (o *stdio) subscribe() *subscriber {
	s := &subscriber{io: o}
	s.wake.L = &o.mu
	o.mu.Lock()
	defer o.mu.Unlock()
	o.subs[s] = struct{}{}
	return s
}

// next returns the next output. It waits for it, and returns false when all output was returned and the process has
// ended, or the subscriber is closed.
func (s *subscriber) next() (chunk, bool) {
	s.io.mu.Lock()
	defer s.io.mu.Unlock()
	for len(s.queue) == 0 && !s.io.over && !s.closed {
		s.wake.Wait()
	}
	if s.closed || len(s.queue) == 0 {
		return chunk{}, false
	}
	c := s.queue[0]
	s.queue = s.queue[1:]
	s.queued -= len(c.data) + frameCost
	s.io.space.Broadcast()
	return c, true
}

// exit tells how the process ended, and whether the subscriber stayed until then.
func (s *subscriber) exit() (api.Exit, bool) {
	s.io.mu.Lock()
	defer s.io.mu.Unlock()
	return s.io.exit, s.io.over && !s.closed
}

// close ends the subscription. A second call does nothing.
func (s *subscriber) close() {
	s.io.mu.Lock()
	defer s.io.mu.Unlock()
	s.closed, s.queue, s.queued = true, nil, 0
	delete(s.io.subs, s)
	s.wake.Signal()
	s.io.space.Broadcast()
}

// closeStdio closes the agent's ends of a process's stdio.
func closeStdio(ends Stdio) {
	if ends.Stdin != nil {
		ends.Stdin.Close()
	}
	for _, r := range []Reader{ends.Stdout, ends.Stderr} {
		if r != nil {
			r.Close()
		}
	}
}
