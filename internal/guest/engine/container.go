package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/logs"
)

// state is where a container stands. It only goes forward, but that a paused container is running again.
type state int

const (
	creating state = iota
	created
	starting
	running
	paused
	exited
	removed
)

func (s state) String() string {
	return [...]string{"being created", "created but not started", "being started", "running", "paused", "exited", "removed"}[s]
}

// container is one container. turn serialises what changes it: create, start, remove. The rest reads under mu.
type container struct {
	id   string
	turn chan struct{} // holds one token: who has taken it may change the container
	done chan struct{} // closed when the process has ended and its output was read
	sb   Sandbox       // set before state leaves creating
	io   *stdio        // the same
	log  *logs.Log     // the same

	copies copies

	settled chan struct{} // closed when the container was started, or is removed without
	settle  sync.Once

	mu    sync.Mutex
	state state
	exit  api.Exit
	at    time.Time // of the exit

	execs   execList
	joiners sync.WaitGroup // execs that run or are being started; one is added under mu while the state is running
}

func newContainer(id string) *container {
	return &container{id: id, turn: make(chan struct{}, 1), done: make(chan struct{}), settled: make(chan struct{})}
}

// lock takes the turn. unlock gives it back.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *container) unlock() { <-c.turn }

func (c *container) get() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// move sets the state where it is from, and returns ErrConflict with what the container is otherwise.
func (c *container) move(from, to state) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != from {
		return fmt.Errorf("container %s: %w: it is %s", c.id, errs.ErrConflict, c.state)
	}
	c.state = to
	return nil
}

// watch waits for the process's end and records it. It returns the event to publish, of kind "" where the container is
// removed without a start. A process that ends before its start, because its surroundings cannot be made, is a created
// container still: the start tells what is wrong.
func (c *container) watch() api.Event {
	exit := c.sb.Wait()
	<-c.settled
	c.mu.Lock()
	c.exit, c.at = exit, time.Now()
	c.mu.Unlock()
	e := api.Event{ID: c.id, Exit: exit, At: c.at}
	c.io.finish(exit, func() { // before a subscriber learns the exit: it may remove the container at once
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.state != created {
			e.Kind = api.EventExit
		}
		c.state = exited
		close(c.done)
	})
	return e
}

// start executes the command. A process that has ended in the meantime is not an error: its exit tells.
func (c *container) start(ctx context.Context) (int, error) {
	if err := c.lock(ctx); err != nil {
		return 0, err
	}
	defer c.unlock()
	if err := c.move(created, starting); err != nil {
		return 0, err
	}
	c.release()
	pid, err := c.sb.Start(ctx)
	if err != nil {
		// The process is gone or about to be: nobody may find a container that is starting for ever.
		<-c.done
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == starting {
		c.state = running
	}
	return pid, nil
}

// release lets watch record the end of the process.
func (c *container) release() { c.settle.Do(func() { close(c.settled) }) }

func (c *container) kill(signal string) error {
	n, err := ParseSignal(signal)
	if err != nil {
		return err
	}
	if s := c.get(); s != running && s != paused {
		return fmt.Errorf("signal container %s: %w: it is %s", c.id, errs.ErrConflict, s)
	}
	return c.sb.Signal(n)
}

func (c *container) wait(ctx context.Context) (api.WaitReply, error) {
	select {
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return api.WaitReply{Exit: c.exit, At: c.at}, nil
	case <-ctx.Done():
		return api.WaitReply{}, ctx.Err()
	}
}

// attach connects a stream to the process's stdio until the process has ended or the stream is closed.
func (c *container) attach(ctx context.Context, req api.AttachRequest, st *api.Stream, accept func() error) error {
	sub := c.io.subscribe()
	defer sub.close()
	if err := accept(); err != nil {
		return err
	}
	ctx = st.HandleFrames(ctx, session{c.io, req.Stdin, c.kill}.frame)
	stop := context.AfterFunc(ctx, sub.close)
	defer stop()
	_, err := sub.send(st)
	return err
}
