package agenttest

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// Process is the process of a container.
type Process struct {
	Request api.CreateRequest // what the container was created with
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
}

// Create implements engine.Backend.
func (b *backend) Create(ctx context.Context, req api.CreateRequest) (engine.Sandbox, error) {
	for _, l := range req.Layers {
		if slices.Contains(b.missing, l.Serial) {
			<-ctx.Done()
			return nil, fmt.Errorf("wait for disk %s: %w: %w", l.Serial, errs.ErrNotFound, ctx.Err())
		}
	}
	s := &sandbox{
		command: b.commands[req.Process.Args[0]],
		pid:     int(b.pids.Add(1)) + 1,
		signals: make(chan int, queueSize),
		sizes:   make(chan api.Size, queueSize),
		done:    make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	p := &Process{Request: req, Stdin: io.MultiReader(), Signals: s.signals, Sizes: s.sizes}
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
	return s, nil
}

// sandbox implements engine.Sandbox.
type sandbox struct {
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
}

// Stdio implements engine.Sandbox.
func (s *sandbox) Stdio() engine.Stdio { return s.stdio }

// Start implements engine.Sandbox.
func (s *sandbox) Start(context.Context) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return 0, fmt.Errorf("start: %w", errs.ErrConflict)
	}
	s.started = true
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

// Wait implements engine.Sandbox.
func (s *sandbox) Wait() api.Exit {
	<-s.done
	return s.exit
}

// Remove implements engine.Sandbox.
func (s *sandbox) Remove() error {
	s.mu.Lock()
	s.cancel()
	started := s.started
	s.mu.Unlock()
	s.unblock()
	if !started {
		s.finish(killed())
	}
	<-s.done
	return nil
}
