package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/logs"
)

// maxContainers is how many containers a guest holds, the stopped ones included.
const maxContainers = 4096

// Engine has the containers of a guest and the methods to use them. Make one with New.
type Engine struct {
	backend Backend
	events  broker
	watches sync.WaitGroup

	bulk    copies // archives of volumes, shares and sockets
	sockets sockets

	machine *container         // stands for the machine itself, where Exec runs processes too: it has no sandbox
	visits  context.Context    // of processes that are being started in the machine
	leave   context.CancelFunc // ends them

	mu         sync.Mutex
	containers map[string]*container
	execs      map[string]*execution
	closed     bool
}

// New returns an engine without containers. Close ends it.
func New(backend Backend) *Engine {
	e := &Engine{
		backend: backend, machine: newContainer(""), containers: make(map[string]*container), execs: make(map[string]*execution),
	}
	e.machine.state = running
	e.visits, e.leave = context.WithCancel(context.Background())
	backend.OnOOM(e.oom)
	return e
}

// Register adds the methods of containers and events to m.
func (e *Engine) Register(m *api.Mux) {
	api.HandleUndo(m, api.Create, e.create)
	api.Handle(m, api.Start, e.start)
	api.Handle(m, api.Wait, e.wait)
	api.Handle(m, api.Kill, e.kill)
	api.Handle(m, api.Remove, e.remove)
	api.Handle(m, api.Pause, e.pause)
	api.Handle(m, api.SetNetwork, e.setNetwork)
	api.Handle(m, api.Update, e.update)
	api.Handle(m, api.ExecInspect, e.execInspect)
	api.Handle(m, api.Stats, e.stats)
	api.Handle(m, api.Top, e.top)
	api.HandleStream(m, api.Attach, e.attach)
	api.HandleStream(m, api.Exec, e.exec)
	api.HandleStream(m, api.Logs, e.logs)
	api.HandleStream(m, api.Dial, e.dial)
	api.HandleStream(m, api.Share, e.share)
	api.HandleStream(m, api.Listen, e.listen)
	api.HandleStream(m, api.Accept, e.accept)
	api.HandleStream(m, api.Events, e.events.serve)
	e.registerFiles(m)
	e.registerVolumes(m)
}

// Close kills and removes all containers and the processes in the machine, and refuses new ones with ErrClosed. What they wrote is kept. It returns when
// they are gone or ctx has ended, with what could not be removed. It may be called again.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	var all []*container
	for _, c := range e.containers {
		all = append(all, c)
	}
	e.mu.Unlock()
	e.bulk.close()
	e.leaveMachine()
	var mu sync.Mutex
	var left []error
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := e.removeContainer(ctx, c, true, KeepData); err != nil && !errors.Is(err, errs.ErrNotFound) {
				mu.Lock()
				defer mu.Unlock()
				left = append(left, err)
			}
		})
	}
	wg.Wait()
	if len(left) == 0 {
		e.machine.joiners.Wait()
		e.watches.Wait()
	}
	return errors.Join(left...)
}

// Idle tells whether there is no container, and no process in the machine.
func (e *Engine) Idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.execs {
		if !x.ended() {
			return false
		}
	}
	return len(e.containers) == 0
}

// get finds a container that was created.
func (e *Engine) get(id string) (*container, error) {
	c, err := e.find(id)
	if err == nil && c.get() == creating {
		return nil, fmt.Errorf("container %.150q: %w: it is being created", id, errs.ErrNotFound)
	}
	return c, err
}

// find finds a container, one that is being created included.
func (e *Engine) find(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %.150q: %w", id, errs.ErrNotFound)
	}
	return c, nil
}

// add makes the entry of a new container, whose turn is taken.
func (e *Engine) add(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, fmt.Errorf("create container %s: %w: the guest is powering off", id, errs.ErrClosed)
	case e.containers[id] != nil:
		return nil, fmt.Errorf("create container %s: %w", id, errs.ErrExists)
	case len(e.containers) >= maxContainers:
		return nil, fmt.Errorf("create container %s: %w: there are %d containers: remove some", id, errs.ErrUnavailable, len(e.containers))
	}
	c := newContainer(id)
	c.turn <- struct{}{}
	e.containers[id] = c
	return c, nil
}

func (e *Engine) drop(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, c.id)
	for _, x := range c.execs.all {
		delete(e.execs, x.id)
	}
}

// create makes a container. Its caller may have gone and asked for the container's removal before it was begun: undo is for
// a caller who did not get the reply.
func (e *Engine) create(ctx context.Context, req api.CreateRequest) (_ api.CreateReply, undo func(), err error) {
	if err := CheckCreate(req); err != nil {
		return api.CreateReply{}, nil, err
	}
	c, err := e.add(req.ID)
	if err != nil {
		return api.CreateReply{}, nil, err
	}
	defer c.unlock()
	done := false
	defer func() {
		if !done { // an error or a panic
			_ = c.move(creating, removed)
			e.drop(c)
		}
	}()
	sb, err := e.backend.Create(ctx, req)
	dir := ""
	if err == nil {
		dir, err = e.backend.LogDir(ctx, req.ID)
	}
	if err != nil && sb != nil {
		err = errors.Join(err, sb.Remove(UndoData))
		closeStdio(sb.Stdio())
	}
	if err == nil && ctx.Err() != nil { // nobody will know that it is there
		err = errors.Join(ctx.Err(), sb.Remove(UndoData))
		closeStdio(sb.Stdio())
	}
	if err != nil {
		return api.CreateReply{}, nil, fmt.Errorf("create container %s: %w", req.ID, err)
	}
	done = true
	c.log = logs.New(dir, logs.Options{MaxSize: req.Log.MaxSize, MaxFiles: req.Log.MaxFiles})
	c.sb, c.io = sb, newStdio(sb.Stdio(), c.log)
	c.io.run()
	if err := c.move(creating, created); err != nil {
		return api.CreateReply{}, nil, err
	}
	e.watches.Go(func() {
		if ev := c.watch(); ev.Kind != "" {
			e.events.publish(ev)
		}
	})
	return api.CreateReply{}, func() {
		_ = e.removeContainer(context.WithoutCancel(ctx), c, true, UndoData) // it may be removed by now
	}, nil
}

func (e *Engine) start(ctx context.Context, req api.StartRequest) (api.StartReply, error) {
	c, err := e.get(req.ID)
	if err != nil {
		return api.StartReply{}, err
	}
	pid, err := c.start(ctx)
	if err != nil {
		return api.StartReply{}, fmt.Errorf("start container %s: %w", req.ID, err)
	}
	return api.StartReply{PID: pid}, nil
}

func (e *Engine) wait(ctx context.Context, req api.WaitRequest) (api.WaitReply, error) {
	c, err := e.get(req.ID)
	if err != nil {
		return api.WaitReply{}, err
	}
	return c.wait(ctx)
}

func (e *Engine) kill(_ context.Context, req api.KillRequest) (api.KillReply, error) {
	c, err := e.get(req.ID)
	if err != nil {
		return api.KillReply{}, err
	}
	return api.KillReply{}, c.kill(req.Signal)
}

// remove waits for the creation of a container that is being created: its creator may have gone in the middle of it.
func (e *Engine) remove(ctx context.Context, req api.RemoveRequest) (api.RemoveReply, error) {
	data := DeleteData
	if req.Keep {
		data = KeepData
	}
	for {
		c, err := e.find(req.ID)
		if err == nil {
			return api.RemoveReply{}, e.removeContainer(ctx, c, req.Force, data)
		}
		if CheckID(req.ID) != nil { // there is none, and nothing that it wrote
			return api.RemoveReply{}, err
		}
		// The request to create it may be read between the two: then it is there after all.
		if err = e.forget(ctx, req); !errors.Is(err, errs.ErrExists) || ctx.Err() != nil {
			return api.RemoveReply{}, err
		}
	}
}

// forget deletes what a container wrote that is known by that only. Nobody creates it meanwhile.
func (e *Engine) forget(ctx context.Context, req api.RemoveRequest) error {
	if req.Keep {
		return fmt.Errorf("container %s: %w", req.ID, errs.ErrNotFound)
	}
	c, err := e.add(req.ID)
	if err != nil {
		return err
	}
	defer c.unlock()
	defer e.drop(c)
	_ = c.move(creating, removed) // it is new
	if err := e.backend.Forget(ctx, req.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", req.ID, err)
	}
	return nil
}

func (e *Engine) removeContainer(ctx context.Context, c *container, force bool, data Data) error {
	if err := c.lock(ctx); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	defer c.unlock()
	switch st := c.get(); {
	case st == removed:
		return fmt.Errorf("container %s: %w", c.id, errs.ErrNotFound)
	case (st == running || st == paused) && !force:
		return fmt.Errorf("remove container %s: %w: it is %s: stop it first, or force the removal", c.id, errs.ErrConflict, st)
	}
	c.release()
	if c.get() == running {
		_ = c.sb.Signal(kill) // what uses its files may wait for a file system that its processes serve
	}
	c.copies.close()
	if err := c.sb.Remove(data); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	<-c.done // its process has ended, and its output is read within drainTime
	c.joiners.Wait()
	if err := c.move(exited, removed); err != nil {
		return err
	}
	e.drop(c)
	return nil
}

func (e *Engine) attach(ctx context.Context, req api.AttachRequest, st *api.Stream, accept func() error) error {
	c, err := e.get(req.ID)
	if err != nil {
		return err
	}
	return c.attach(ctx, req, st, accept)
}
