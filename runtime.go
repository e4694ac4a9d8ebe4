package arcbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/machine"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
)

// Runtime is a container engine. Make one with New and close it with Close; its methods may be called from many
// goroutines, also while it is being closed.
type Runtime struct {
	cfg        Config
	events     event.Bus
	images     *image.Store
	containers *container.Manager
	volumes    *volume.Manager
	machine    *lifecycle.Supervisor[*machine.Machine]
	dir        *machine.Dir // of the machine; that of others only where it is private

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // no call may begin any more
	calls  sync.WaitGroup // calls in progress; one is added under mu

	closeOnce sync.Once
	gone      chan struct{} // closed when nothing of the Runtime is left
	closeErr  error
}

// defaultMachine is the name of the machine that containers run in.
const defaultMachine = "default"

// New makes a Runtime. It makes the data directory where it does not exist, boots nothing and touches no network.
//
// A value in cfg that cannot work is ErrInvalid, a data directory that cannot be written is ErrUnavailable. Several
// Runtimes, in one process or in many, may use one data directory.
func New(cfg Config) (*Runtime, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, opError("New", "", err)
	}
	if err := prepareDataDir(cfg.DataDir); err != nil {
		return nil, opError("New", "", err)
	}
	images, err := image.Open(image.Config{
		Dir: filepath.Join(cfg.DataDir, "images"), Logger: cfg.Logger,
		Platform: ocispec.Platform{OS: "linux", Architecture: cfg.VM.Arch},
		Keychain: cfg.Registry.Keychain, Transport: cfg.Registry.Transport,
		Mirrors: cfg.Registry.Mirrors, CA: cfg.Registry.CA, Proxy: cfg.Registry.Proxy,
		PlainHTTP: func(host string) bool { return slices.Contains(cfg.Registry.PlainHTTP, host) },
		Limits: image.Limits{
			LayerSize: cfg.Images.LayerSize, LayerEntries: cfg.Images.LayerEntries, Layers: cfg.Images.Layers,
			BlobSize: cfg.Images.BlobSize, Parallel: cfg.Registry.Parallel,
		},
	})
	if err != nil {
		return nil, opError("New", "", err)
	}
	r := &Runtime{cfg: cfg, images: images, gone: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.openContainers(); err != nil {
		r.cancel()
		return nil, opError("New", "", errors.Join(err, images.Close()))
	}
	r.machine = lifecycle.New(lifecycle.Options[*machine.Machine]{
		Start: r.startMachine, IdleTimeout: cfg.Lifecycle.IdleTimeout, OnState: r.publishMachine,
	})
	return r, nil
}

// openContainers takes the directory of the default machine and makes the manager of the containers. Machine and records
// belong to the first Runtime that is open on a data directory; another one has a machine and containers of its own, which
// end with it.
func (r *Runtime) openContainers() error {
	machines, records := filepath.Join(r.cfg.DataDir, "machines"), filepath.Join(r.cfg.DataDir, "containers")
	volumes := filepath.Join(r.cfg.DataDir, "volumes")
	var err error
	if r.cfg.VM.Ephemeral {
		records, volumes = "", ""
		r.dir, err = machine.OpenPrivateDir(machines)
	} else {
		r.dir, err = machine.OpenDir(machines, defaultMachine)
	}
	if errors.Is(err, errs.ErrInUse) {
		r.cfg.Logger.Info("this runtime has a machine of its own, and its containers end with it", "why", err)
		records, volumes = "", ""
		r.dir, err = machine.OpenPrivateDir(machines)
	}
	if err != nil {
		return err
	}
	r.volumes, err = volume.Open(volume.Config{Dir: volumes, Logger: r.cfg.Logger, OnCreate: r.volumeCreated, OnRemove: r.volumeRemoved})
	if err != nil {
		return errors.Join(err, r.dir.Close())
	}
	r.containers, err = container.NewManager(container.Config{
		Images: r.images, Volumes: r.volumes, Acquire: r.acquireMachine, Current: r.currentMachine, Seccomp: r.compileSeccomp, Dir: records,
		Events: &r.events, Logger: r.cfg.Logger,
	})
	if err != nil {
		return errors.Join(err, r.dir.Close())
	}
	return nil
}

// compileSeccomp compiles a profile, or the default one, for the guest.
func (r *Runtime) compileSeccomp(profile string, caps []string) ([]byte, error) {
	if profile == "" {
		return seccomp.Default(r.cfg.VM.Arch, caps)
	}
	return seccomp.Compile(r.cfg.VM.Arch, caps, []byte(profile))
}

// prepareDataDir makes the directory and finds out whether it can be written.
func prepareDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w data directory: %w; set Config.DataDir to a directory that can be written", errs.ErrUnavailable, err)
	}
	f, err := os.CreateTemp(dir, ".write-test-*")
	if err != nil {
		return fmt.Errorf("%w data directory: %w; set Config.DataDir to a directory that can be written", errs.ErrUnavailable, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// bootConfig is what the machine boots from.
func (c Config) bootConfig() boot.Config {
	return boot.Config{
		Dir: c.Boot.Dir, Arch: c.VM.Arch,
		Kernel: c.Boot.Kernel, Modules: c.Boot.Modules, Agent: c.Boot.Agent,
		URL: c.Boot.URL, SHA256: c.Boot.SHA256, Image: c.Boot.Image,
		Progress: c.Boot.Progress, Logger: c.Logger,
	}
}

// startMachine boots the machine; the supervisor calls it.
func (r *Runtime) startMachine(ctx context.Context) (*machine.Machine, error) {
	dir := r.dir
	if r.cfg.VM.Ephemeral {
		dir = nil
	}
	return machine.Start(ctx, machine.Config{
		Name: defaultMachine,
		Dir:  dir, DiskSize: r.cfg.VM.DiskSize, Known: r.containers.IDs, Volumes: r.volumes.IDs,
		Driver: r.driver(), Boot: r.cfg.bootConfig(),
		CPUs: r.cfg.VM.CPUs, Memory: r.cfg.VM.Memory,
		Accelerator: r.cfg.VM.Accelerator, Transport: r.cfg.VM.Transport,
		Template: r.cfg.VM.Template == TemplateAuto,
		Console:  r.cfg.VM.Console, Logger: r.cfg.Logger,
		OnBooting: func() { r.events.Publish(event.Event{Kind: event.MachineBooting, Machine: defaultMachine}) },
		OnEvent:   r.containers.HandleEvent,
		OnEnd:     func(m *machine.Machine) { r.containers.HandleEnd(guest{m}) },
	})
}

func (r *Runtime) driver() vm.Driver {
	return qemu.New(qemu.Config{Binary: r.cfg.VM.QEMU, Logger: r.cfg.Logger})
}

// acquireMachine starts the machine where it does not run and holds it.
func (r *Runtime) acquireMachine(ctx context.Context) (container.Machine, func(), error) {
	m, release, err := r.machine.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	return guest{m}, release, nil
}

// currentMachine returns the machine where it runs.
func (r *Runtime) currentMachine() (container.Machine, bool) {
	m, ok := r.machine.Current()
	return guest{m}, ok
}

// publishMachine turns the supervisor's transitions into events.
func (r *Runtime) publishMachine(t lifecycle.Transition) {
	kinds := map[lifecycle.State]event.Kind{
		lifecycle.Starting: event.MachineStarting, lifecycle.Ready: event.MachineReady,
		lifecycle.Stopping: event.MachineStopping, lifecycle.Stopped: event.MachineStopped,
		lifecycle.Crashed: event.MachineCrashed, lifecycle.Failed: event.MachineFailed,
	}
	kind, ok := kinds[t.To]
	if !ok {
		return
	}
	e := event.Event{Kind: kind, Machine: defaultMachine, Attributes: map[string]string{}}
	if t.Err != nil {
		e.Attributes[event.AttrError] = t.Err.Error()
	}
	if t.RetryIn > 0 {
		e.Attributes[event.AttrRetryIn] = t.RetryIn.String()
	}
	r.events.Publish(e)
}

// EventsOptions tunes Events. The zero value asks for every kind.
type EventsOptions struct {
	Kinds []event.Kind // only these; empty is all
}

// Events returns a channel of what happens from now on, to range over. It is closed when ctx ends or the Runtime is
// closed. A reader that falls behind finds one event of kind event.Lost in place of what it missed; nobody waits for it.
func (r *Runtime) Events(ctx context.Context, opts EventsOptions) <-chan event.Event {
	return r.events.Subscribe(ctx, event.SubscribeOptions{Kinds: opts.Kinds})
}

// Close kills the containers, powers the machine off, and returns when nothing of the Runtime is left: no process, no
// goroutine, no temporary file. Calls in progress end with ErrClosed. A second call waits too and returns the same. Close
// must not be called from a function that the Runtime itself calls, such as PullOptions.Progress.
func (r *Runtime) Close() error {
	r.closeOnce.Do(func() {
		defer close(r.gone)
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.cancel()
		r.calls.Wait()
		r.containers.Close()
		r.closeErr = opError("Close", "", errors.Join(r.machine.Close(), r.images.Close(), r.dir.Close()))
		r.events.Close()
	})
	<-r.gone
	return r.closeErr
}

// call runs one call of the API: not after Close, with a context that Close ends, and with its error as users see it.
func call[T any](ctx context.Context, r *Runtime, op, ref string, fn func(context.Context) (T, error)) (T, error) {
	var none T
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return none, opError(op, ref, ErrClosed)
	}
	r.calls.Add(1)
	r.mu.Unlock()
	defer r.calls.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.ctx, func() { cancel(ErrClosed) })()
	if err := ctx.Err(); err != nil {
		return none, opError(op, ref, err)
	}
	v, err := fn(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrClosed) {
		err = ErrClosed
	}
	return v, opError(op, ref, err)
}

// callNone is call for functions that return an error only.
func callNone(ctx context.Context, r *Runtime, op, ref string, fn func(context.Context) error) error {
	_, err := call(ctx, r, op, ref, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}
