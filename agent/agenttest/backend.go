package agenttest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// Process is a process of a container.
type Process struct {
	Request api.CreateRequest // what the container was created with; of an exec, Process is the exec's
	ExecID  string            // "" for the container's first process
	Stdin   io.Reader         // at its end at once where the request asks for no stdin
	Stdout  io.Writer
	Stderr  io.Writer       // of a terminal, the same as Stdout
	Signals <-chan int      // numbers of Linux; KILL ends the context instead. What nobody takes is dropped
	Sizes   <-chan api.Size // of a terminal, when it is resized. What nobody takes is dropped
}

// queueSize is how many signals and sizes wait for a process to take them.
const queueSize = 16

type backend struct {
	commands map[string]Command
	missing  []string
	pids     atomic.Int64

	mu  sync.Mutex
	dir string // has a directory for each container, for its log; "" before the first
}

// LogDir implements engine.Backend.
func (b *backend) LogDir(_ context.Context, id string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dir := filepath.Join(b.dir, id)
	if _, err := os.Stat(dir); b.dir == "" || err != nil {
		return "", fmt.Errorf("container %s: %w", id, errs.ErrNotFound)
	}
	return filepath.Join(dir, "log"), nil
}

func (b *backend) makeDir(id string) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "agenttest"); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(b.dir, id), 0o700)
}

func (b *backend) removeDir(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(b.dir, id))
}

// close deletes the logs.
func (b *backend) close() {
	_ = b.removeDir("")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dir = ""
}

// Forget implements engine.Backend.
func (b *backend) Forget(ctx context.Context, id string) error {
	if _, err := b.LogDir(ctx, id); err != nil {
		return err
	}
	return b.removeDir(id)
}

// Create implements engine.Backend.
func (b *backend) Create(ctx context.Context, req api.CreateRequest) (engine.Sandbox, error) {
	for _, l := range req.Layers {
		if slices.Contains(b.missing, l.Serial) {
			<-ctx.Done()
			return nil, fmt.Errorf("wait for disk %s: %w: %w", l.Serial, errs.ErrNotFound, ctx.Err())
		}
	}
	if err := b.makeDir(req.ID); err != nil {
		return nil, err
	}
	return b.process(req, ""), nil
}

// Exec implements engine.Backend.
func (b *backend) Exec(ctx context.Context, req api.ExecRequest) (engine.Process, error) {
	machine := &sandbox{b: b, ctx: context.Background(), execs: make(map[*sandbox]struct{})}
	return machine.Exec(ctx, req)
}

// process makes a process that waits for its start.
func (b *backend) process(req api.CreateRequest, execID string) *sandbox {
	s := &sandbox{
		b:       b,
		request: req,
		command: b.commands[req.Process.Args[0]],
		pid:     int(b.pids.Add(1)) + 1,
		signals: make(chan int, queueSize),
		sizes:   make(chan api.Size, queueSize),
		done:    make(chan struct{}),
		execs:   make(map[*sandbox]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	p := &Process{Request: req, ExecID: execID, Stdin: io.MultiReader(), Signals: s.signals, Sizes: s.sizes}
	if req.Process.Stdin {
		near, far := net.Pipe()
		p.Stdin, s.stdio.Stdin, s.ends = far, near, append(s.ends, far)
	}
	near, far := net.Pipe()
	p.Stdout, s.stdio.Stdout, s.ends = far, near, append(s.ends, far)
	p.Stderr = p.Stdout
	if req.Process.TTY {
		s.stdio.Resize = s.resize
		s.stdio.EOF = func() error { return nil }
	} else {
		near, far := net.Pipe()
		p.Stderr, s.stdio.Stderr, s.ends = far, near, append(s.ends, far)
	}
	s.process = p
	return s
}

// OnOOM implements engine.Backend. No process is ever killed for lack of memory.
func (b *backend) OnOOM(func(id string)) {}

// sandbox implements engine.Sandbox.
type sandbox struct {
	b       *backend
	request api.CreateRequest
	command Command
	pid     int
	process *Process
	stdio   engine.Stdio
	ends    []io.Closer // the process's
	signals chan int
	sizes   chan api.Size
	ctx     context.Context
	cancel  context.CancelFunc
	end     sync.Once
	done    chan struct{}
	exit    api.Exit
	mu      sync.Mutex
	started bool
	execs   map[*sandbox]struct{} // those that run
}

// execution implements engine.Process.
type execution struct {
	*sandbox
	of *sandbox
}

// Exec implements engine.Sandbox.
func (s *sandbox) Exec(ctx context.Context, req api.ExecRequest) (engine.Process, error) {
	create := s.request
	create.Process = req.Process
	x := s.b.process(create, req.ExecID)
	s.mu.Lock()
	ended := s.ctx.Err() != nil
	if !ended {
		s.execs[x] = struct{}{}
	}
	s.mu.Unlock()
	err := error(fmt.Errorf("%w: the container's process has ended", errs.ErrConflict))
	if !ended {
		_, err = x.Start(ctx)
	}
	if err != nil {
		_ = x.Remove(engine.DeleteData)
		s.leave(x)
		for _, c := range []io.Closer{x.stdio.Stdin, x.stdio.Stdout, x.stdio.Stderr} {
			if c != nil {
				c.Close()
			}
		}
		return nil, err
	}
	return &execution{x, s}, nil
}

// Stats implements engine.Sandbox. There is no kernel that counts anything: only the processes are counted.
func (s *sandbox) Stats() (api.StatsReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.StatsReply{At: time.Now(), CPUs: 1, PIDs: int64(1 + len(s.execs))}, nil
}

// Top implements engine.Sandbox.
func (s *sandbox) Top(context.Context) ([]api.ProcessInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []api.ProcessInfo{{PID: 1, State: "S", Command: s.request.Process.Args}}
	for x := range s.execs {
		list = append(list, api.ProcessInfo{PID: x.pid, State: "S", Command: x.request.Process.Args})
	}
	return list, nil
}

func (s *sandbox) leave(x *sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, x)
}

// PID implements engine.Process.
func (x *execution) PID() int { return x.pid }

// Kill implements engine.Process.
func (x *execution) Kill() error { return x.Signal(9) }

// Release implements engine.Process.
func (x *execution) Release() { x.of.leave(x.sandbox) }

// Stdio implements engine.Sandbox.
func (s *sandbox) Stdio() engine.Stdio { return s.stdio }

// Start implements engine.Sandbox.
func (s *sandbox) Start(context.Context) (int, error) {
	s.mu.Lock()
	gone := s.ctx.Err() != nil
	s.started = s.started || !gone
	s.mu.Unlock()
	if gone {
		return 0, fmt.Errorf("start: %w", errs.ErrConflict)
	}
	if s.command == nil {
		s.finish(api.Exit{Code: 127})
		return 0, fmt.Errorf("execute %s: %w", s.process.Request.Process.Args[0], errs.ErrNoCommand)
	}
	go func() {
		code := s.command(s.ctx, s.process)
		if s.ctx.Err() != nil {
			s.finish(killed())
			return
		}
		s.finish(api.Exit{Code: code})
	}()
	return s.pid, nil
}

func killed() api.Exit { return api.Exit{Code: 128 + 9, Signal: "KILL"} }

func (s *sandbox) finish(exit api.Exit) {
	s.end.Do(func() {
		s.cancel()
		s.mu.Lock()
		for x := range s.execs { // as the kernel does when the first process of a container ends
			x.cancel()
			x.unblock()
		}
		s.mu.Unlock()
		for _, c := range s.ends {
			c.Close()
		}
		s.exit = exit
		close(s.done)
	})
}

// Signal implements engine.Sandbox.
func (s *sandbox) Signal(sig int) error {
	if sig == 9 {
		s.cancel()
		s.unblock()
		return nil
	}
	select {
	case s.signals <- sig:
	default:
	}
	return nil
}

// unblock ends what the process reads and writes.
func (s *sandbox) unblock() {
	for _, c := range s.ends {
		c.Close()
	}
}

func (s *sandbox) resize(size api.Size) error {
	select {
	case s.sizes <- size:
	default:
	}
	return nil
}

// Freeze implements engine.Sandbox. The command goes on: only the state is known.
func (s *sandbox) Freeze(ctx context.Context, _ bool) error { return ctx.Err() }

// Update implements engine.Sandbox. There is nothing to limit.
func (s *sandbox) Update(api.Resources) error { return nil }

// Wait implements engine.Sandbox.
func (s *sandbox) Wait() api.Exit {
	<-s.done
	return s.exit
}

// Remove implements engine.Sandbox.
func (s *sandbox) Remove(data engine.Data) error {
	s.mu.Lock()
	s.cancel()
	started := s.started
	s.mu.Unlock()
	s.unblock()
	if !started {
		s.finish(killed())
	}
	<-s.done
	if s.process.ExecID != "" || data == engine.KeepData {
		return nil
	}
	return s.b.removeDir(s.request.ID)
}
