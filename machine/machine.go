// Package machine is a virtual machine with its agent: it boots one, knows when it is ready, gives it disks, and takes
// it down.
package machine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/share"
	"github.com/arcboxlabs/arcbox-go/internal/socket"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Config says what Start boots and who is told.
type Config struct {
	Name        string
	Driver      vm.Driver
	Boot        boot.Config
	CPUs        int
	Memory      int64 // bytes
	Accelerator vm.Accelerator
	Transport   vm.Transport
	Console     io.Writer    // gets the guest's console; nil drops it
	Logger      *slog.Logger // nil is silent

	// RunDir is a directory of this machine alone, on the file system of the disks that it is given, in which the driver may
	// keep files while it runs. "" lets the driver take one of the system's.
	RunDir string

	// SharedDir is a directory of the host that the machine has as a whole where the driver has Capabilities.Shares; what is
	// in it needs no other way into the guest. "" is none.
	SharedDir string

	// Template lets the machine go on from one that has booted before and was saved in the boot cache. Where that is not
	// possible or fails, it boots; the Logger is told why.
	Template bool

	// ReturnMemory gives memory that the guest does not use any more back to the host. It excludes Forkable.
	ReturnMemory bool
	// Forkable lets Fork save the machine while it runs. Its memory is its own then.
	Forkable bool
	// Aliases names containers of the guest otherwise, from the host's id to the guest's. nil is none.
	Aliases map[string]string
	// Dir is the machine's directory, whose data disk has what containers write. The disk is made where there is none yet.
	// Dir stays the caller's, and open until the machine has ended. nil keeps what containers write in memory.
	Dir *Dir
	// DiskSize is the size in bytes of a data disk that is made. 0 is 64 GiB. The file takes what is written to it.
	DiskSize int64
	// DiskCache is a directory for what data disks are made from; many machines and processes may share it. "" is the
	// directory disks in that of Boot.
	DiskCache string
	// Wanted tells whether somebody waits for the machine who has work for it: the data disk is attached beside the last steps
	// of the start then, and there is memory at hand, see vm.Spec.Eager. nil is nobody; the disk comes with UseDisk.
	Wanted func() bool
	// Known returns, at the start, the ids of the containers that there are: what others have left on the data disk is
	// deleted when it is first used. nil deletes nothing.
	Known func() []string
	// Volumes returns the ids of the volumes that there are, for the same purpose. nil is none.
	Volumes func() []string

	// The agent is asked every HealthInterval whether it is well. One that has not answered within HealthTimeout ends the
	// machine. An interval of 0 does not ask.
	HealthInterval, HealthTimeout time.Duration
	// Attach is given the host's end of the machine's network interface, before the guest is spoken to. What it returns is
	// closed when the machine has ended. nil leaves the machine without an interface, as do drivers that have none.
	Attach func(nic net.Conn) (io.Closer, error)
	// OnBooting is told that kernel and initramfs are there, before the hypervisor is started. nil is nobody.
	OnBooting func()
	// OnEvent is told what the guest reports, OnEnd that the machine has ended. They are called by one goroutine, OnEnd
	// last, after Done is closed. nil is nobody.
	OnEvent func(api.Event)
	OnEnd   func(*Machine)

	dataDisk vm.Disk // with Path "" there is none
	diskUsed bool    // the machine goes on from one that has used it
}

// Machine is a running machine whose agent has answered.
type Machine struct {
	cfg    Config
	spec   vm.Spec // it was started with
	inst   vm.Instance
	agent  *agent.Client
	guest  api.PingReply
	shares *share.Set
	socks  *socket.Set
	nic    io.Closer       // that Attach returned; nil where there is no interface
	ctx    context.Context // ends with the machine
	cancel context.CancelFunc
	wg     sync.WaitGroup

	pausing sync.Mutex // held while it is paused or resumed
	paused  bool       // under pausing, as pauses
	pauses  int        // how often it was paused

	mu     sync.Mutex
	disks  map[string]*attachment // by ID
	err    error                  // why the machine had to be ended
	closed bool
}

// attachment is a disk that is attached or being attached.
type attachment struct {
	slot int // of the bay that it is in; 0 is none. Under Machine.mu
	done chan struct{}
	err  error // readable after done
}

// Start finds what to boot, starts a machine, and returns it when its agent has answered. ctx bounds the start only.
// Where it returns an error, nothing is left; the error has the last lines of the guest's console where there are any.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if dir, ok := cfg.Dir.goesOn(); ok {
		return goOn(ctx, cfg, dir)
	}
	assets, err := cfg.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.OnBooting != nil {
		cfg.OnBooting()
	}
	spec := cfg.spec(assets)
	if cfg.Template {
		m, err := fromTemplate(ctx, cfg, assets, spec)
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		cfg.Logger.Info("the machine boots, without a template", "machine", cfg.Name, "reason", err)
	}
	return launch(ctx, cfg, spec)
}

// spec is what the driver is asked for.
func (c *Config) spec(assets *boot.Assets) vm.Spec {
	spec := vm.Spec{
		Name: c.Name, Arch: assets.Arch, Kernel: assets.Kernel, Initramfs: assets.Initramfs,
		CPUs: c.CPUs, Memory: c.Memory, Console: c.Console,
		Accelerator: c.Accelerator, Transport: c.Transport, Forkable: c.Forkable, ReturnMemory: c.ReturnMemory, Dir: c.RunDir,
		NIC: c.hasNIC(),
	}
	c.addShares(&spec)
	if c.dataDisk.Path != "" && !c.Driver.Capabilities().AttachWritable {
		spec.Disks = []vm.Disk{c.dataDisk} // a machine with it cannot come from a template
	}
	return spec
}

func fromTemplate(ctx context.Context, cfg Config, assets *boot.Assets, spec vm.Spec) (*Machine, error) {
	t, err := newTemplate(cfg, assets, spec)
	if err != nil {
		return nil, err
	}
	return t.start(ctx)
}

// answerLimit is how long a guest may take to boot and to answer. The slowest ones, emulated and many at once, take a
// minute: one that takes longer never will, and its caller may have set no limit.
const answerLimit = 3 * time.Minute

// launch starts a machine and returns it when its agent has answered.
func launch(ctx context.Context, cfg Config, spec vm.Spec) (*Machine, error) {
	began := time.Now()
	inst, err := cfg.Driver.Start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", cfg.Name, err)
	}
	m := &Machine{cfg: cfg, spec: spec, inst: inst, agent: newAgent(inst, cfg.Aliases), disks: make(map[string]*attachment)}
	done := make(chan struct{})
	close(done)
	for _, d := range spec.Disks {
		a := &attachment{done: done}
		if _, ok := spec.Bay(d.Slot); ok {
			a.slot = d.Slot
		}
		m.disks[d.ID] = a
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.shares = share.NewSet(m.openShare)
	m.socks = socket.NewSet(m.agent, cfg.Logger)
	if err := m.plugIn(); err != nil {
		m.cancel()
		inst.Close()
		return nil, fmt.Errorf("start machine %s: %w", cfg.Name, err)
	}
	greeting, cancel := context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("%w: the guest has not answered for %s", errs.ErrUnavailable, answerLimit))
	defer cancel()
	if err := m.greet(greeting, spec.State != ""); err != nil {
		if ctx.Err() == nil && greeting.Err() != nil {
			err = context.Cause(greeting)
		}
		m.cancel()
		inst.Close()
		m.wg.Wait()
		m.unplug()
		return nil, fmt.Errorf("start machine %s: %w", cfg.Name, explain(inst, err))
	}
	cfg.Logger.Debug("machine ready", "machine", cfg.Name, "kernel", m.guest.Kernel, "after", time.Since(began))
	return m, nil
}

func newAgent(inst vm.Instance, aliases map[string]string) *agent.Client {
	return agent.New(func(ctx context.Context) (net.Conn, error) { return inst.Dial(ctx, api.Port) }).WithAliases(aliases)
}

// greet waits for the agent's first answer, configures the guest, and subscribes to its events.
func (m *Machine) greet(ctx context.Context, clone bool) (err error) {
	if m.guest, err = m.agent.Ping(ctx); err != nil {
		return err
	}
	m.expectDisk()
	if clone {
		if err := m.wake(ctx); err != nil {
			return err
		}
	}
	if err := m.configure(ctx); err != nil {
		return err
	}
	events, err := m.agent.Events(m.ctx)
	if err != nil {
		return err
	}
	m.wg.Go(func() { m.follow(events) })
	if m.cfg.HealthInterval > 0 {
		m.wg.Go(m.watchHealth)
	}
	return nil
}

// explain adds the console's last lines to an error of a machine whose driver has not done so itself.
func explain(inst vm.Instance, err error) error {
	if ierr := inst.Err(); ierr != nil {
		return ierr // it has them
	}
	if c, ok := inst.(vm.ConsoleTailer); ok && c.ConsoleTail() != "" {
		return fmt.Errorf("%w; the console's last lines:\n%s", err, c.ConsoleTail())
	}
	return err
}

// endGrace is how long a machine may take to end after its agent's stream of events has.
const endGrace = 3 * time.Second

// follow hands on the guest's events until they end, and ends the machine then: without its agent it is of no use.
func (m *Machine) follow(events <-chan api.Event) {
	for ev := range events {
		if m.cfg.OnEvent != nil {
			m.cfg.OnEvent(ev)
		}
	}
	// The driver knows better why, where the machine has ended.
	grace := time.NewTimer(endGrace)
	defer grace.Stop()
	select {
	case <-m.inst.Done():
	case <-grace.C:
		m.mu.Lock()
		if !m.closed && m.err == nil {
			m.err = fmt.Errorf("%w: the agent's event stream ended", errs.ErrUnavailable)
		}
		closed := m.closed
		m.mu.Unlock()
		if !closed {
			m.inst.Close()
		}
	}
	<-m.inst.Done()
	m.cancel()
	defer m.shares.Close()
	defer m.socks.Close()
	m.unplug()
	if m.cfg.OnEnd != nil {
		m.cfg.OnEnd(m)
	}
}

// hasNIC tells whether the machine gets a network interface.
func (c Config) hasNIC() bool { return c.Attach != nil && c.Driver.Capabilities().NIC }

// plugIn hands the network interface to who wants it.
func (m *Machine) plugIn() (err error) {
	n, ok := m.inst.(vm.Networked)
	if !ok || !m.spec.NIC {
		return nil
	}
	m.nic, err = m.cfg.Attach(n.NIC())
	return err
}

func (m *Machine) unplug() {
	if m.nic == nil {
		return
	}
	if err := m.nic.Close(); err != nil {
		m.cfg.Logger.Debug("unplug the network", "machine", m.cfg.Name, "err", err)
	}
}

// NIC returns what Attach has returned; nil where the machine has no network interface.
func (m *Machine) NIC() io.Closer { return m.nic }

// Name returns the machine's name.
func (m *Machine) Name() string { return m.cfg.Name }

// HasDisk tells whether what containers write is on the machine's disk. It is in its memory otherwise.
func (m *Machine) HasDisk() bool { return m.cfg.dataDisk.Path != "" }

// Agent answers calls to the guest.
func (m *Machine) Agent() *agent.Client { return m.agent }

// Guest is what the agent told of itself when it first answered.
func (m *Machine) Guest() api.PingReply { return m.guest }

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.inst.Done() }

// Err tells why the machine ended, and is nil while it runs and after Shutdown.
func (m *Machine) Err() error {
	if err := m.inst.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// AttachDisks gives the machine disks, side by side and once for each ID, however many ask. The guest finds each by its
// Serial. ctx bounds the wait of this caller only.
func (m *Machine) AttachDisks(ctx context.Context, disks ...vm.Disk) error {
	pending, err := m.beginAttach(disks...)
	if err != nil {
		return err
	}
	for _, a := range pending {
		select {
		case <-a.done:
			if a.err != nil {
				return a.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// beginAttach begins to attach those of the disks that are not there, and returns what all of them wait for.
func (m *Machine) beginAttach(disks ...vm.Disk) ([]*attachment, error) {
	att, ok := m.inst.(vm.DiskAttacher)
	if !ok {
		return nil, fmt.Errorf("attach disks: driver %s: %w", m.cfg.Driver.Name(), errs.ErrUnsupported)
	}
	pending := make([]*attachment, len(disks))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("attach disks: machine %s: %w", m.cfg.Name, errs.ErrClosed)
	}
	for i, d := range disks {
		a := m.disks[d.ID]
		if a == nil {
			a = &attachment{slot: m.freeBay(d), done: make(chan struct{})}
			m.disks[d.ID] = a
			m.wg.Go(func() { m.attach(att, d, a) })
		}
		pending[i] = a
	}
	return pending, nil
}

// powerOffGrace is how long a guest may take to power off before it is killed.
const powerOffGrace = 5 * time.Second

// Shutdown powers the guest off, kills it where it does not within a few seconds or when ctx ends, and returns when
// everything of the machine is gone. A second call waits for that too.
func (m *Machine) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if first {
		m.powerOff(ctx)
	}
	err := m.inst.Close()
	m.cancel()
	m.shares.Close()
	m.socks.Close()
	m.wg.Wait()
	return err
}

func (m *Machine) powerOff(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, powerOffGrace)
	defer cancel()
	if err := m.Resume(ctx); err != nil {
		m.cfg.Logger.Debug("resume for the power-off", "machine", m.cfg.Name, "err", err)
	}
	if err := m.agent.Poweroff(ctx); err != nil {
		m.cfg.Logger.Debug("power off", "machine", m.cfg.Name, "err", err)
		return
	}
	select {
	case <-m.inst.Done():
	case <-ctx.Done():
		m.cfg.Logger.Warn("the guest did not power off in time and is killed", "machine", m.cfg.Name)
	}
}
