package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"
)

// process is what signals need of a running container's process.
type process interface {
	Signal(ctx context.Context, name string) error
	Resize(ctx context.Context, rows, cols uint16) error
}

// signals takes the signals of this process: before the container's process runs they end what is in progress, then they
// are the container's. It runs when it writes, which may be before the call that starts it has returned: signals that come
// between the two wait for that.
type signals struct {
	ch     chan os.Signal
	target chan target
	wrote  atomic.Bool // the process has written
	done   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

type target struct {
	p        process
	terminal *os.File // whose size the process's terminal follows; nil for none
}

// signalError says that a signal came before the container's process ran.
type signalError struct {
	name   string
	number int
}

func (e *signalError) Error() string { return "signal " + e.name }

// patience is how many such signals a container may ignore before it is killed. One more gives up on the machine.
const patience = 2

// sendTimeout bounds what is told to the container: a machine that hangs must not hide the signals that follow.
const sendTimeout = 5 * time.Second

func newSignals(cancel context.CancelCauseFunc) *signals {
	s := &signals{ch: make(chan os.Signal, 32), target: make(chan target), done: make(chan struct{})}
	list := []os.Signal{}
	for sig := range proxied() {
		list = append(list, sig)
	}
	if resized() != nil {
		list = append(list, resized())
	}
	signal.Notify(s.ch, list...)
	s.wg.Go(func() { s.run(cancel) })
	return s
}

func (s *signals) run(cancel context.CancelCauseFunc) {
	names := proxied()
	var to target
	var early []os.Signal
	asked := 0
	pass := func(sig os.Signal) {
		name := names[sig]
		if ends(name) {
			asked++
		}
		if asked > patience+1 {
			cancel(&signalError{name, number(sig)})
		} else if asked > patience {
			name = "KILL"
		}
		to.send(name)
	}
	for {
		select {
		case <-s.done:
			return
		case to = <-s.target:
			to.resize()
			for _, sig := range early {
				pass(sig)
			}
			early = nil
		case sig := <-s.ch:
			name, ok := names[sig]
			switch {
			case to.p == nil && ok && s.wrote.Load() && len(early) < patience:
				early = append(early, sig)
			case to.p == nil && ok:
				cancel(&signalError{name, number(sig)})
			case to.p == nil:
			case sig == resized():
				to.resize()
			default:
				pass(sig)
			}
		}
	}
}

// output is where the process writes to, whose signals these are.
func (s *signals) output(w io.Writer) io.Writer { return output{w, &s.wrote} }

type output struct {
	io.Writer
	wrote *atomic.Bool
}

// Write writes, and notes before that the process runs.
func (o output) Write(p []byte) (int, error) {
	o.wrote.Store(true)
	return o.Writer.Write(p)
}

// ends tells that people send the signal to end a process.
func ends(name string) bool { return name == "INT" || name == "TERM" || name == "HUP" }

// send sends the process a signal. It fails where the process has just ended, which is as well.
func (t target) send(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	_ = t.p.Signal(ctx, name)
}

// forward sends the signals that come from now on to p, whose terminal, if it has one, follows the size of in.
func (s *signals) forward(p process, in *os.File, tty bool) {
	t := target{p: p}
	if tty && term.IsTerminal(int(in.Fd())) {
		t.terminal = in
	}
	select {
	case s.target <- t:
	case <-s.done:
	}
}

// resize gives the process's terminal the size of this one.
func (t target) resize() {
	if t.terminal == nil {
		return
	}
	if cols, rows, err := term.GetSize(int(t.terminal.Fd())); err == nil && cols > 0 && rows > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
		defer cancel()
		_ = t.p.Resize(ctx, uint16(rows), uint16(cols)) // as send
	}
}

// stop gives the signals back to the system.
func (s *signals) stop() {
	s.once.Do(func() {
		signal.Stop(s.ch)
		close(s.done)
	})
	s.wg.Wait()
}

// number returns a signal's number, for the exit code.
func number(sig os.Signal) int {
	var n int
	if _, err := fmt.Sscanf(fmt.Sprintf("%d", sig), "%d", &n); err != nil {
		return 1
	}
	return n
}
