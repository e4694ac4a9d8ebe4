package arcbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	"github.com/arcboxlabs/arcbox-go/internal/machines"
	"github.com/arcboxlabs/arcbox-go/internal/network"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// Runtime is a container engine. Make one with New and close it with Close; its methods may be called from many
// goroutines, also while it is being closed.
type Runtime struct {
	cfg        Config
	events     event.Bus
	images     *image.Store
	containers *container.Manager
	volumes    *volume.Manager
	networks   *network.Manager
	machines   *machines.Manager[*machine.Machine]
	snapshots  *machines.Snapshots

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool           // no call may begin any more
	calls  sync.WaitGroup // calls in progress; one is added under mu

	closeOnce sync.Once
	gone      chan struct{} // closed when nothing of the Runtime is left
	closeErr  error
}

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
	if err := r.openMachines(); err != nil {
		r.cancel()
		return nil, opError("New", "", errors.Join(err, images.Close()))
	}
	return r, nil
}

// openMachines makes the managers of machines and containers. The records of a machine's containers belong to the Runtime
// that has the machine.
func (r *Runtime) openMachines() (err error) {
	vm, dir := r.cfg.VM, filepath.Join(r.cfg.DataDir, "machines")
	r.snapshots = machines.NewSnapshots(filepath.Join(dir, ".snapshots"))
	def := machines.Spec{
		Name: DefaultMachine, CPUs: vm.CPUs, Memory: vm.Memory, Disk: vm.DiskSize, Ephemeral: vm.Ephemeral || r.cfg.Ephemeral, Forkable: vm.Forkable, Returns: vm.ReturnMemory,
	}
	var prepare func(*machine.Dir) error
	if vm.Snapshot != "" {
		def.CPUs, def.Memory, def.Disk = 0, 0, 0
		if def, prepare, err = r.fromSnapshot(r.ctx, def, vm.Snapshot, false); err != nil {
			return err
		}
	}
	r.machines, err = machines.New(machines.Config[*machine.Machine]{
		Dir: dir, Default: def, Prepare: prepare, Alone: r.cfg.Ephemeral,
		LockTimeout: r.cfg.LockTimeout, IdleTimeout: r.cfg.Lifecycle.IdleTimeout, Recovery: r.cfg.Lifecycle.Recovery.compile(),
		Start: r.startMachine, Taken: func(name string) error { return r.containers.LoadMachine(name) },
		Events: &r.events, Logger: r.cfg.Logger,
	})
	if err != nil {
		return err
	}
	volumes := filepath.Join(r.cfg.DataDir, "volumes")
	if !r.machines.Keeps(DefaultMachine) {
		volumes = "" // the records belong to whom the default machine belongs
	}
	r.volumes, err = volume.Open(volume.Config{Dir: volumes, Logger: r.cfg.Logger, OnCreate: r.volumeCreated, OnRemove: r.volumeRemoved})
	if err != nil {
		return errors.Join(err, r.machines.Close())
	}
	var others container.Others = r.machines
	if vm.Ephemeral {
		others = nil // it has nothing to do with them
	}
	networks := filepath.Join(r.cfg.DataDir, "networks")
	if volumes == "" {
		networks = ""
	}
	if r.networks, err = network.New(network.Config{Dir: networks, Logger: r.cfg.Logger}); err != nil {
		return errors.Join(err, r.machines.Close())
	}
	r.containers, err = container.NewManager(container.Config{
		Others: others,
		Images: r.images, Volumes: r.volumes, Networks: r.networks, Acquire: r.acquireMachine, Current: r.currentMachine, Keeps: r.machines.Keeps, Seccomp: r.compileSeccomp,
		Dir: filepath.Join(r.cfg.DataDir, "containers"), Events: &r.events, Logger: r.cfg.Logger,
	})
	if err != nil {
		r.networks.Close()
		return errors.Join(err, r.machines.Close())
	}
	r.networks.RemoveTwins(func(of string) bool { // the program may have been killed before it did so
		_, err := r.machines.Inspect(of)
		return errors.Is(err, ErrNotFound)
	})
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

// startMachine boots a machine; its supervisor calls it.
func (r *Runtime) startMachine(ctx context.Context, s machines.Spec, dir *machine.Dir, wanted func() bool) (*machine.Machine, error) {
	run := ""
	if dir != nil {
		run = dir.Path()
	}
	if r.cfg.VM.Ephemeral && r.cfg.VM.Snapshot == "" && s.Name == DefaultMachine {
		dir = nil
	}
	known := func() []string { return r.containers.IDs(s.Name) }
	if r.machines.Keeps(s.Name) && !r.machines.Keeps(DefaultMachine) {
		known = nil // another process knows the volumes: nothing is swept
	}
	m, err := machine.Start(ctx, machine.Config{
		Name: s.Name, Forkable: s.Forkable, ReturnMemory: s.Returns, Aliases: s.Aliases,
		Dir: dir, DiskSize: s.Disk, Wanted: wanted, Known: known, Volumes: r.volumes.IDs,
		Driver: r.cfg.driver(), RunDir: run, SharedDir: r.cfg.VM.SharedDir, Boot: r.cfg.bootConfig(),
		CPUs: s.CPUs, Memory: s.Memory,
		Accelerator: r.cfg.VM.Accelerator, Transport: r.cfg.VM.Transport,
		Template: r.cfg.VM.Template == TemplateAuto,
		Console:  r.cfg.VM.Console, Logger: r.cfg.Logger,
		HealthInterval: r.cfg.Lifecycle.HealthInterval, HealthTimeout: r.cfg.Lifecycle.HealthTimeout,
		Attach:    func(nic net.Conn) (io.Closer, error) { return r.networks.Attach(nic) },
		OnBooting: func() { r.events.Publish(event.Event{Kind: event.MachineBooting, Machine: s.Name}) },
		OnEvent:   r.containers.HandleEvent,
		OnEnd:     func(m *machine.Machine) { r.containers.HandleEnd(guest{m}) },
	})
	if err == nil && dir != nil {
		if err = r.adopt(ctx, m, dir); err != nil {
			err = errors.Join(err, m.Shutdown(ctx))
		}
	}
	return m, err
}

// acquireMachine starts a machine where it does not run, gives it its disk, and holds it.
func (r *Runtime) acquireMachine(ctx context.Context, name string) (container.Machine, func(), error) {
	m, release, err := r.machines.Use(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return guest{m}, release, nil
}

// currentMachine gives a machine its disk where it runs, and returns nil where it does not.
func (r *Runtime) currentMachine(ctx context.Context, name string) (container.Machine, error) {
	m, ok := r.machines.Current(name)
	if !ok {
		return nil, nil
	}
	return guest{m}, m.UseDisk(ctx)
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
		r.closeErr = opError("Close", "", errors.Join(r.machines.Close(), r.images.Close()))
		r.networks.Close()
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
