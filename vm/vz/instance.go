package vz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
	"github.com/arcboxlabs/arcbox-go/internal/vmlife"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// grace is how long is waited for calls of the framework that have no bound of their own, when the machine is to end, and
// for what must follow at once from its end.
const grace = 10 * time.Second

// Instance is a machine of the Virtualization framework.
type Instance struct {
	life   *vmlife.Life // begins to end before the machine is stopped
	log    *slog.Logger
	fw     framework
	layers *layers
	nic    net.Conn        // the host's end of the network interface; nil where there is none
	fixed  map[string]bool // the disks of the start, by ID
	save   bool            // it can be saved: it has booted, with an identity that is kept
	begun  chan struct{}   // closed when the start has returned

	turn    chan struct{} // held by who changes the state of the machine: the framework takes one change at a time
	started bool          // the machine was started; of who holds turn, as paused
	paused  bool

	calls vmlife.Group   // calls of the framework under way; they may never end
	wg    sync.WaitGroup // goroutines that end with the machine
}

var (
	_ vm.Instance      = (*Instance)(nil)
	_ vm.DiskAttacher  = (*Instance)(nil)
	_ vm.Pauser        = (*Instance)(nil)
	_ vm.ConsoleTailer = (*Instance)(nil)
	_ vm.Snapshotter   = (*Instance)(nil)
	_ vm.Networked     = (*Instance)(nil)
)

// newInstance makes the instance of a machine that begin will start. The caller starts own.
func newInstance(log *slog.Logger, p plan, fw framework, output io.ReadCloser, tee io.Writer, l *layers) *Instance {
	i := &Instance{
		life: vmlife.New(p.name, log), log: log, fw: fw, layers: l, fixed: make(map[string]bool),
		save: p.identity != "" && p.state == "", begun: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	for _, d := range p.disks {
		i.fixed[d.ID] = true
	}
	i.life.Console.Tee = tee
	i.life.Console.OnPanic = func() { i.life.Condemn("the guest's kernel panicked") }
	i.wg.Go(func() {
		io.Copy(&i.life.Console, output)
		output.Close()
	})
	return i
}

// begin starts the machine and returns when it runs, or when ctx has ended.
func (i *Instance) begin(ctx context.Context, p plan) error {
	defer close(i.begun)
	err := i.exclusively(ctx, func() error {
		if p.state == "" {
			err := i.fw.start()
			i.started = err == nil
			return err
		}
		if err := i.fw.restore(p.state); err != nil {
			return fmt.Errorf("go on from %s: %w", p.state, err)
		}
		i.started = true
		return i.fw.resume()
	})
	if err != nil {
		return err
	}
	i.wg.Add(1) // own still waits for the begin
	go func() {
		defer i.wg.Done()
		i.link()
	}()
	return nil
}

// exclusively runs a call that changes the machine's state, in its turn, and waits for it until ctx or the machine ends.
func (i *Instance) exclusively(ctx context.Context, call func() error) error {
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-i.life.Context().Done():
		return i.lifeEnded()
	}
	result := make(chan error, 1)
	if !i.calls.Go(func() {
		result <- call()
		<-i.turn
	}) {
		<-i.turn
		return i.lifeEnded()
	}
	select {
	case err := <-result:
		return explain(err)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-i.life.Context().Done():
		return i.lifeEnded()
	}
}

// lifeEnded is the error of a call that the machine's end interrupts: why it ends, where it has begun.
func (i *Instance) lifeEnded() error {
	select {
	case <-i.begun:
		return i.life.Ended()
	default: // own waits for the begin
		return fmt.Errorf("%w: the machine ended while it started", errs.ErrUnavailable)
	}
}

// own waits for the end of the machine, or brings it about, and then ends everything else.
func (i *Instance) own(output io.ReadCloser) {
	last := i.watch()
	i.life.BeginEnd()
	<-i.begun
	if last == stateOther {
		last = i.pull()
	}
	i.calls.Close()
	if !within(grace, i.calls.Wait) {
		// The binding waits on a channel for the framework, and nothing can make it stop.
		i.log.Warn("a call of the Virtualization framework does not return and is left behind")
	}
	if err := i.layers.close(); err != nil {
		i.log.Warn("remove the directory of layers", "err", err)
	}
	i.fw.release()
	if i.nic != nil {
		i.nic.Close() // a socket of messages does not tell that its peer has gone
	}
	// What the guest wrote last is read to its end, which the framework may keep open.
	if d, ok := output.(interface{ SetReadDeadline(time.Time) error }); ok {
		d.SetReadDeadline(time.Now().Add(grace))
	}
	i.wg.Wait()
	i.life.End(i.cause(last))
}

// cause returns why the machine ended in its last state, "" where that is as it should be.
func (i *Instance) cause(last state) string {
	switch line := i.life.Console.PanicLine(); {
	case line != "":
		return "the guest's kernel panicked: " + line
	case i.life.Condemned() != "":
		return i.life.Condemned()
	case last == stateError:
		return "the Virtualization framework ended it by an error"
	}
	return ""
}

// watch waits until the machine has ended, and returns its last state, or until it is to end: then that is stateOther.
func (i *Instance) watch() state {
	for {
		select {
		case s := <-i.fw.states():
			if s != stateOther {
				return s
			}
		case <-i.life.Context().Done():
			return stateOther
		}
	}
}

// pull pulls the plug and waits for the end of the machine. A start that is under way is waited for first: the framework
// cannot interrupt it.
func (i *Instance) pull() state {
	if !within(grace, func() { i.turn <- struct{}{} }) {
		i.log.Warn("a call of the Virtualization framework keeps the machine from being stopped")
	} else if !i.started {
		return stateStopped
	}
	stopped := make(chan error, 1)
	i.calls.Go(func() { stopped <- i.fw.stop() })
	t := time.NewTimer(grace)
	defer t.Stop()
	for {
		select {
		case s := <-i.fw.states():
			if s != stateOther {
				return s
			}
		case err := <-stopped:
			if err == nil {
				return stateStopped
			}
			// It was never started, or it has ended by itself at this very moment.
			i.log.Debug("stop", "err", err)
			stopped = nil
			t.Reset(time.Second)
		case <-t.C:
			return stateStopped
		}
	}
}

// within tells whether f returns in time. An f that does not is left behind.
func within(d time.Duration, f func()) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ended:
		return true
	case <-t.C:
		return false
	}
}

// link connects to the agent when it is there, and ends the machine when the link breaks.
func (i *Instance) link() {
	conn, err := i.reach()
	if err != nil {
		return // the machine ends
	}
	// The streams end as by a cut, not as if they had been closed.
	defer context.AfterFunc(i.life.Context(), func() { conn.Close() })()
	if err := i.life.Link(conn); err != nil {
		i.life.Condemn("the guest broke the link to its agent: " + err.Error())
	}
}

// How long is waited between two attempts to reach a guest that does not listen yet, and for the answer to one: the
// framework may give none, and has no event for a guest that begins to listen.
const (
	dialRetry    = 5 * time.Millisecond
	dialRetryMax = 100 * time.Millisecond
	dialAnswer   = 2 * time.Second
)

// reach connects to the guest's agent, until it is there or the machine ends. This is the machine's only connection: the
// binding closes the descriptor of a connection that the framework's own object closes once more when it goes, so that
// each connection is a chance to close a stranger's file. One attempt follows the other, and what answers late is taken.
func (i *Instance) reach() (net.Conn, error) {
	type answer struct {
		conn net.Conn
		err  error
	}
	answers, over := make(chan answer), make(chan struct{})
	defer close(over)
	attempt := func() bool {
		return i.calls.Go(func() {
			c, err := i.fw.connect(mux.VsockPort)
			select {
			case answers <- answer{c, err}:
			case <-over:
				if err == nil {
					c.Close()
				}
			}
		})
	}
	wait := dialRetry
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if !attempt() {
				return nil, i.life.Context().Err()
			}
			t.Reset(dialAnswer)
		case a := <-answers:
			if a.err == nil {
				return a.conn, nil
			}
			t.Reset(wait)
			wait = min(2*wait, dialRetryMax)
		case <-i.life.Context().Done():
			return nil, i.life.Context().Err()
		}
	}
}

// Dial opens a stream to a port of the guest. See vm.Instance. It does not wait for the guest to accept, so that a port on
// which nobody listens shows in the stream's first read.
func (i *Instance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return i.life.Dial(ctx, port)
}

// NIC returns the host's end of the network interface, a connection of messages. See vm.Networked.
func (i *Instance) NIC() net.Conn { return i.nic }

// Pause stops the guest's processors. See vm.Pauser. A call whose ctx ends may pause the machine nevertheless.
func (i *Instance) Pause(ctx context.Context) error {
	return i.operate(ctx, "pause", func() error { return i.setPaused(true) })
}

// Resume lets the guest go on. See vm.Pauser. A call whose ctx ends may resume the machine nevertheless.
func (i *Instance) Resume(ctx context.Context) error {
	return i.operate(ctx, "resume", func() error { return i.setPaused(false) })
}

// setPaused pauses or resumes, where the machine is not so already. It is called by who has the turn.
func (i *Instance) setPaused(paused bool) (err error) {
	switch {
	case paused == i.paused:
		return nil
	case paused:
		err = i.fw.pause()
	default:
		err = i.fw.resume()
	}
	if err == nil {
		i.paused = paused
	}
	return err
}

func (i *Instance) operate(ctx context.Context, verb string, call func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s machine %s: %w", verb, i.life.Name, context.Cause(ctx))
	}
	if err := i.exclusively(ctx, call); err != nil {
		return fmt.Errorf("%s machine %s: %w", verb, i.life.Name, err)
	}
	return nil
}

// Snapshot saves the machine, its memory included, and leaves it paused. See vm.Snapshotter. The file of Spec.MemoryFile
// has the machine's identity only.
func (i *Instance) Snapshot(ctx context.Context, path string) error {
	if !i.save {
		return fmt.Errorf("save machine %s: %w: it was not started with a memory file of its own", i.life.Name, errs.ErrUnsupported)
	}
	path, err := absolute(path)
	if err != nil {
		return fmt.Errorf("save machine %s: %w", i.life.Name, err)
	}
	return i.operate(ctx, "save", func() error {
		if err := i.setPaused(true); err != nil {
			return err
		}
		return i.fw.save(path)
	})
}

// Shutdown presses the power button and kills the machine when ctx ends before it has ended. See vm.Instance. It resumes
// a paused machine. A machine that has ended already is nil.
func (i *Instance) Shutdown(ctx context.Context) error {
	return i.life.Shutdown(ctx, func() {
		i.exclusively(ctx, func() error { return errors.Join(i.setPaused(false), i.fw.requestStop()) })
	}, i.life.BeginEnd)
}

// Done is closed when the machine has ended. See vm.Instance.
func (i *Instance) Done() <-chan struct{} { return i.life.Done() }

// Err tells why the machine ended. See vm.Instance.
func (i *Instance) Err() error { return i.life.Err() }

// Close pulls the plug and waits for the machine's end. See vm.Instance.
func (i *Instance) Close() error { return i.life.Close(i.life.BeginEnd) }

// ConsoleTail returns the last lines of the guest's console. See vm.ConsoleTailer. It keeps at most 200.
func (i *Instance) ConsoleTail() string { return i.life.ConsoleTail() }
