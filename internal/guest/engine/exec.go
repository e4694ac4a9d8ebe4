package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxExecs is how many execs of a container are known: those that run, and the newest of those that have ended.
const maxExecs = 1024

// execution is a process that Exec has started, or is about to.
type execution struct {
	id      string
	c       *container
	started chan struct{} // closed when p and io are set, or the start has failed
	done    chan struct{} // closed when the process has ended and its output was read; exit is set
	p       Process
	io      *stdio
	exit    api.Exit
	watches *sync.WaitGroup // the engine's
}

// execList has the execs of a container, the oldest first. The engine's lock guards it.
type execList struct{ all []*execution }

// ended tells whether the process has ended.
func (x *execution) ended() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// remove takes the execs out that drop returns true for, at most n of them.
func (l *execList) remove(n int, drop func(*execution) bool) (gone []*execution) {
	kept := l.all[:0]
	for _, x := range l.all {
		if n > 0 && drop(x) {
			gone = append(gone, x)
			n--
			continue
		}
		kept = append(kept, x)
	}
	clear(l.all[len(kept):])
	l.all = kept
	return gone
}

// join counts an exec of a running container, which is not removed before leave.
func (c *container) join() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != running {
		return fmt.Errorf("exec in %s: %w: it is %s", c.title(), errs.ErrConflict, c.state)
	}
	c.joiners.Add(1)
	return nil
}

func (c *container) leave() { c.joiners.Done() }

// addExec makes the entry of an exec.
func (e *Engine) addExec(c *container, id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.execs[id] != nil {
		return nil, fmt.Errorf("exec %s: %w", id, errs.ErrExists)
	}
	if len(c.execs.all) >= maxExecs {
		gone := c.execs.remove(1, (*execution).ended)
		if len(gone) == 0 {
			return nil, fmt.Errorf("exec in %s: %w: %d run in it already: end some", c.title(), errs.ErrUnavailable, maxExecs)
		}
		delete(e.execs, gone[0].id)
	}
	x := &execution{id: id, c: c, watches: &e.watches, started: make(chan struct{}), done: make(chan struct{})}
	e.execs[id] = x
	c.execs.all = append(c.execs.all, x)
	return x, nil
}

// dropExec forgets an exec whose start has failed.
func (e *Engine) dropExec(x *execution) {
	close(x.started)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.execs, x.id)
	x.c.execs.remove(1, func(y *execution) bool { return y == x })
}

// execIn finds where an exec runs, and what starts it there.
func (e *Engine) execIn(id string) (*container, func(context.Context, api.ExecRequest) (Process, error), error) {
	if id == "" {
		return e.machine, e.execInMachine, nil
	}
	c, err := e.get(id)
	if err != nil {
		return nil, nil, err
	}
	return c, c.sb.Exec, nil
}

// execInMachine starts a process in the machine itself, unless the machine is left meanwhile.
func (e *Engine) execInMachine(ctx context.Context, req api.ExecRequest) (Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.visits, cancel)()
	return e.backend.Exec(ctx, req)
}

// title is what errors of execs call the container, or the machine.
func (c *container) title() string {
	if c.id == "" {
		return "the machine"
	}
	return "container " + c.id
}

// leaveMachine kills the processes that Exec runs in the machine itself, and lets no more begin. Where one is being
// started, that ends, or exec sees that it came too late.
func (e *Engine) leaveMachine() {
	e.leave()
	m := e.machine
	m.mu.Lock()
	m.state = removed
	m.mu.Unlock()
	e.mu.Lock()
	all := slices.Clone(m.execs.all)
	e.mu.Unlock()
	for _, x := range all {
		select {
		case <-x.started:
			if x.p != nil && !x.ended() {
				_ = x.p.Kill() // it may have ended
			}
		default:
		}
	}
}

// exec starts a process and connects the stream to it. When the stream ends before the process, it is killed.
func (e *Engine) exec(ctx context.Context, req api.ExecRequest, st *api.Stream, accept func() error) error {
	if err := CheckExec(req); err != nil {
		return err
	}
	c, start, err := e.execIn(req.ID)
	if err != nil {
		return err
	}
	if err := c.join(); err != nil {
		return err
	}
	left := false
	defer func() {
		if !left {
			c.leave()
		}
	}()
	x, err := e.addExec(c, req.ExecID)
	if err != nil {
		return err
	}
	if req.Detach {
		req.Process.Stdin = false // nobody would feed it
	}
	// A caller who goes away cancels the start. It sends nothing before it is accepted.
	ctx = st.HandleFrames(ctx, func(kind api.FrameType, p []byte) bool {
		select {
		case <-x.started:
			return x.p != nil && session{x.io, req.Process.Stdin, x.signal}.frame(kind, p)
		default:
			return false
		}
	})
	p, err := start(ctx, req)
	if err != nil {
		e.dropExec(x)
		return fmt.Errorf("exec in %s: %w", c.title(), err)
	}
	left = true
	return x.serve(ctx, p, req.Detach, st, accept)
}

// serve hands the output of the process, which has just been started, to the stream, until one of them ends.
func (x *execution) serve(ctx context.Context, p Process, detach bool, st *api.Stream, accept func() error) error {
	x.p, x.io = p, newStdio(p.Stdio(), nil)
	sub := x.io.subscribe()
	defer sub.close()
	x.io.run()
	x.watches.Go(x.watch)
	close(x.started)
	if x.c.get() == removed { // Close has seen it before it was started; a container's process takes it along
		_ = p.Kill()
	}
	if detach {
		sub.close()
		return accept()
	}
	stop := context.AfterFunc(ctx, sub.close)
	defer stop()
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { // input that the process does not read hides the end of the stream from ctx
		select {
		case <-st.Gone():
			sub.close()
		case <-ended:
		}
	})
	defer watch.Wait()
	defer close(ended)
	err := accept()
	whole := false
	if err == nil {
		whole, err = sub.send(st)
	}
	if !whole && !x.ended() {
		err = errors.Join(err, p.Kill())
	}
	return err
}

// watch waits for the process's end and records it.
func (x *execution) watch() {
	defer x.c.leave()
	exit := x.p.Wait()
	x.io.finish(exit, func() {
		x.p.Release()
		x.exit = exit
		close(x.done)
	})
}

func (x *execution) signal(name string) error {
	n, err := ParseSignal(name)
	if err != nil {
		return err
	}
	if x.ended() {
		return fmt.Errorf("signal exec %s: %w: it has ended", x.id, errs.ErrConflict)
	}
	return x.p.Signal(n)
}

func (e *Engine) execInspect(ctx context.Context, req api.ExecInspectRequest) (rep api.ExecInspectReply, err error) {
	e.mu.Lock()
	x := e.execs[req.ExecID]
	e.mu.Unlock()
	if x == nil {
		return rep, fmt.Errorf("exec %.150q: %w", req.ExecID, errs.ErrNotFound)
	}
	select {
	case <-x.started:
	case <-ctx.Done():
		return rep, ctx.Err()
	}
	if x.p == nil {
		return rep, fmt.Errorf("exec %.150q: %w: it could not be started", req.ExecID, errs.ErrNotFound)
	}
	if req.Signal != "" {
		if err := x.signal(req.Signal); err != nil {
			return rep, err
		}
	}
	if req.Size != (api.Size{}) && x.io.ends.Resize != nil && !x.ended() {
		if err := x.io.ends.Resize(req.Size); err != nil {
			return rep, fmt.Errorf("resize the terminal of exec %s: %w", x.id, err)
		}
	}
	if req.Wait {
		select {
		case <-x.done:
		case <-ctx.Done():
			return rep, ctx.Err()
		}
	}
	rep = api.ExecInspectReply{ID: x.c.id, PID: x.p.PID(), Running: true}
	if x.ended() {
		rep.Running, rep.Exit = false, x.exit
	}
	return rep, nil
}
