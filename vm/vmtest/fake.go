// Package vmtest helps to test what is built on package vm: a driver without machines, and the suite that every driver
// must pass.
package vmtest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
	"github.com/arcboxlabs/arcbox-go/internal/vmlife"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Fake is a vm.Driver whose machines are goroutines: the guest's side of each stream is a Go function. The zero value
// starts machines that listen on nothing. Its fields are set before the first Start.
type Fake struct {
	// Ports has what serves the streams to each port, in a goroutine per stream, until the stream or the machine ends.
	Ports map[uint32]func(m *FakeInstance, c net.Conn)
	// OnStart is called at the begin of each Start; its error is the error of Start. It may wait for ctx. nil does nothing.
	OnStart func(ctx context.Context, spec vm.Spec) error
	// Booted is closed when the guests listen. nil means at once.
	Booted <-chan struct{}
	// Hung makes guests that do not react to Shutdown.
	Hung bool

	mu      sync.Mutex
	started []*FakeInstance
}

var _ vm.Driver = (*Fake)(nil)

// Name returns "fake".
func (f *Fake) Name() string { return "fake" }

// Capabilities tells what fake machines can do: all but what concerns memory and real programs.
func (f *Fake) Capabilities() vm.Capabilities {
	return vm.Capabilities{Console: true, Pause: true, AttachReadOnly: true, AttachWritable: true, Detach: true, ForeignArch: true}
}

// Start starts a fake machine. The kernel and the disks of spec need not exist.
func (f *Fake) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	spec, err := spec.Complete("amd64")
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start fake machine %s: %w", spec.Name, context.Cause(ctx))
	}
	if len(spec.Shares) > 0 || spec.Rosetta || len(spec.Bays) > 0 {
		return nil, fmt.Errorf("start fake machine %s: shares and bays: %w", spec.Name, errs.ErrUnsupported)
	}
	if f.OnStart != nil {
		if err := f.OnStart(ctx, spec); err != nil {
			return nil, fmt.Errorf("start fake machine %s: %w", spec.Name, err)
		}
	}
	m := newFakeInstance(f, spec)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, m)
	return m, nil
}

// Started returns every machine that was started, in order, those that have ended included.
func (f *Fake) Started() []*FakeInstance {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*FakeInstance(nil), f.started...)
}

// FakeInstance is a machine of a Fake.
type FakeInstance struct {
	spec vm.Spec
	hung bool
	gate gate

	life *vmlife.Life

	mu    sync.Mutex
	disks map[string]vm.Disk
	kept  string // what the suite's guest was told to remember
}

var (
	_ vm.Instance      = (*FakeInstance)(nil)
	_ vm.DiskAttacher  = (*FakeInstance)(nil)
	_ vm.Pauser        = (*FakeInstance)(nil)
	_ vm.ConsoleTailer = (*FakeInstance)(nil)
)

func newFakeInstance(f *Fake, spec vm.Spec) *FakeInstance {
	m := &FakeInstance{
		spec: spec, hung: f.Hung, life: vmlife.New(spec.Name, slog.New(slog.DiscardHandler)), disks: make(map[string]vm.Disk),
	}
	m.life.Console.Tee = spec.Console
	for _, d := range spec.Disks {
		m.disks[d.ID] = d
	}
	var guest mux.Listener
	for port, fn := range f.Ports {
		guest.Handle(port, func(c net.Conn) { fn(m, c) })
	}
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	life := m.life.Context()
	wg.Go(func() {
		defer theirs.Close()
		select {
		case <-f.Booted:
		case <-life.Done():
			return
		case <-open(f.Booted == nil):
		}
		guest.Serve(life, &fakeLink{Conn: theirs, gate: &m.gate, life: life})
	})
	wg.Go(func() { m.life.Link(ours) }) // the guest's end of the link goes first, when the machine ends
	go func() {
		wg.Wait()
		m.life.End(m.life.Condemned())
	}()
	return m
}

// open returns a closed channel for true and nil for false.
func open(yes bool) <-chan struct{} {
	if !yes {
		return nil
	}
	c := make(chan struct{})
	close(c)
	return c
}

// gate stops those who pass while it is shut.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // closed when it opens; nil while it is open
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if shut && g.shut == nil {
		g.shut = make(chan struct{})
	}
	if !shut && g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (g *gate) pass(life context.Context) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-life.Done():
		}
	}
}

// fakeLink is the guest's end of a link. Its host never comes back.
type fakeLink struct {
	net.Conn
	gate *gate
	life context.Context
}

func (l *fakeLink) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.gate.pass(l.life)
	return n, err
}

func (l *fakeLink) Write(p []byte) (int, error) {
	l.gate.pass(l.life)
	return l.Conn.Write(p)
}

func (l *fakeLink) SetWriteDeadline(t time.Time) error { return l.Conn.SetWriteDeadline(t) }

func (l *fakeLink) WaitPeer(context.Context) error { return io.ErrClosedPipe }

// Spec returns what the machine was started with, completed.
func (m *FakeInstance) Spec() vm.Spec { return m.spec }

// Crash ends the machine as a kernel panic would, with why and the last lines of Say in the error. It does not wait, and
// does nothing to a machine that ends already.
func (m *FakeInstance) Crash(why string) { m.life.Condemn(why) }

// PowerOff ends the machine as a guest that powers off does. It does not wait.
func (m *FakeInstance) PowerOff() {
	m.life.Ask()
	m.life.BeginEnd()
}

// Say writes a line to the guest's console.
func (m *FakeInstance) Say(line string) { fmt.Fprintf(&m.life.Console, "%s\n", line) }

// Disks returns the disks that are attached, by ID.
func (m *FakeInstance) Disks() map[string]vm.Disk {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]vm.Disk, len(m.disks))
	for id, d := range m.disks {
		out[id] = d
	}
	return out
}

// Dial opens a stream to the function of a port. See vm.Instance.
func (m *FakeInstance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.life.Dial(ctx, port)
}

// Shutdown ends the machine, unless its Fake is Hung: then it waits for ctx and kills it. See vm.Instance.
func (m *FakeInstance) Shutdown(ctx context.Context) error {
	return m.life.Shutdown(ctx, func() {
		if !m.hung {
			m.life.BeginEnd()
		}
	}, m.life.BeginEnd)
}

// Done is closed when the machine has ended. See vm.Instance.
func (m *FakeInstance) Done() <-chan struct{} { return m.life.Done() }

// Err tells why the machine ended. See vm.Instance.
func (m *FakeInstance) Err() error { return m.life.Err() }

// Close ends the machine. See vm.Instance.
func (m *FakeInstance) Close() error { return m.life.Close(m.life.BeginEnd) }

// Pause stops the guest. See vm.Pauser.
func (m *FakeInstance) Pause(ctx context.Context) error { return m.setPaused(ctx, true) }

// Resume lets the guest go on. See vm.Pauser.
func (m *FakeInstance) Resume(ctx context.Context) error { return m.setPaused(ctx, false) }

func (m *FakeInstance) setPaused(ctx context.Context, yes bool) error {
	if m.life.Context().Err() != nil {
		return m.life.Ended()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.gate.set(yes)
	return nil
}

// AttachDisk adds a disk. See vm.DiskAttacher. Its file must exist.
func (m *FakeInstance) AttachDisk(ctx context.Context, d vm.Disk) error {
	if err := m.usable(ctx, d.Check()); err != nil {
		return fmt.Errorf("attach disk: %w", err)
	}
	if _, err := os.Stat(d.Path); err != nil {
		return fmt.Errorf("attach disk %s: %w: %w", d.ID, errs.ErrNotFound, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.disks[d.ID]; ok {
		return fmt.Errorf("attach disk %s: %w", d.ID, errs.ErrExists)
	}
	m.disks[d.ID] = d
	return nil
}

// DetachDisk removes a disk. See vm.DiskAttacher.
func (m *FakeInstance) DetachDisk(ctx context.Context, id string) error {
	if err := m.usable(ctx, nil); err != nil {
		return fmt.Errorf("detach disk: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.disks[id]; !ok {
		return fmt.Errorf("detach disk %.40q: %w", id, errs.ErrNotFound)
	}
	delete(m.disks, id)
	return nil
}

// usable returns err, or why the machine takes no calls.
func (m *FakeInstance) usable(ctx context.Context, err error) error {
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case m.life.Context().Err() != nil:
		return m.life.Ended()
	}
	return nil
}

// ConsoleTail returns the last lines that Say wrote. See vm.ConsoleTailer.
func (m *FakeInstance) ConsoleTail() string { return m.life.ConsoleTail() }
