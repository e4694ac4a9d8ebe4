package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/box"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/proc"
	"github.com/arcboxlabs/arcbox-go/internal/guest/uevent"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

// Main is the agent: it boots the guest and serves until the guest is powered off. It never returns but with an error,
// which is fatal for the guest: when its first process ends, the kernel panics, and the host notices. What goes wrong is
// written to stderr, which becomes the guest's console where there was none when the kernel executed the agent.
func Main(stderr *os.File) error {
	if os.Getpid() != 1 {
		return errors.New("the agent is the first process of a guest, and nothing else")
	}
	unix.Umask(0) // modes are what they are said to be
	a := &agent{console: &lateConsole{file: stderr}, phases: &phases{}, reaper: proc.NewReaper(), failed: make(chan error, 4), settled: make(chan struct{})}
	a.phases.done("exec")
	err := a.run(context.Background())
	a.console.look()
	return err
}

// Init tells whether the program was executed, with these arguments, as something else than the agent: as the init of a
// container, which has run the container's command then, or as the command of a rehearsal, which uses the streams. If so code
// is to exit with.
func Init(args []string, stdin, stdout, stderr *os.File) (code int, is bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case box.InitName:
		return box.Init(args), true
	case api.RehearsalCommand:
		return rehearsal(stdin, stdout, stderr), true
	}
	return 0, false
}

// agent is the parts of the running agent.
type agent struct {
	console *lateConsole
	failed  chan error // what ends the agent, or nil for a part that has ended well
	phases  *phases
	reaper  *proc.Reaper
	box     *box.Box
	engine  *engine.Engine
	vsock   vsockServer
	demand  *demand

	settled   chan struct{} // closed when what boots in the background is done
	settleErr error         // readable after that
}

func (a *agent) run(ctx context.Context) error {
	if err := switchRoot(); err != nil {
		return err
	}
	events, err := uevent.Listen()
	if err != nil {
		return err
	}
	a.phases.done("root")
	mods, err := readModules()
	if err != nil {
		return err
	}
	ports := newPorts()
	a.box = box.New(a.reaper)
	a.engine = engine.New(a.box)
	if a.demand, err = newDemand(mods); err != nil {
		return err
	}
	a.box.OnDemand(func(name string) error { return a.demand.load(name) })
	if err := a.useFiles(); err != nil {
		return err
	}
	go func() {
		a.failed <- events.Run(func(e uevent.Event) {
			ports.handle(e)
			a.box.HandleDevice(e)
		})
	}()
	methods := a.methods()
	a.vsock.serve = methods.ServeConn
	early := make(chan struct{})
	go func() { a.failed <- a.prepare(ctx, mods, early) }()
	if err := loadModules(bootfs.Pick(mods, bootfs.Early)); err != nil {
		return err
	}
	close(early)
	a.phases.done("early modules")
	ports.handle(uevent.Event{Action: uevent.Rescan})
	go func() {
		port, err := ports.open(ctx)
		if err == nil {
			a.phases.done("port")
			var l mux.Listener
			l.Handle(api.Port, func(c net.Conn) { methods.ServeConn(ctx, c) })
			err = l.Serve(ctx, port)
		}
		a.failed <- err
	}()
	for {
		if err := <-a.failed; err != nil {
			return err
		}
	}
}

// prepare does what the first answer need not wait for. Create waits for it. What goes wrong with containers is for
// those who create one; it does not keep the agent from answering.
func (a *agent) prepare(ctx context.Context, mods []bootfs.Module, early <-chan struct{}) error {
	err := a.prepareContainers(mods, early)
	if err := a.box.Ready(err); err != nil {
		a.complain(err)
	}
	a.box.HandleDevice(uevent.Event{Action: uevent.Rescan})
	a.phases.done("containers")
	a.settleErr = err
	err = a.vsock.listen()
	close(a.settled)
	if err == nil {
		err = a.vsock.run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		a.complain(err) // the port to the host is there still
	}
	return nil
}

// complain writes an error to the console, where the host finds it.
func (a *agent) complain(err error) { fmt.Fprintln(a.console, "arcbox-agent:", err) }

func (a *agent) prepareContainers(mods []bootfs.Module, early <-chan struct{}) error {
	if err := setUp(); err != nil {
		return err
	}
	<-early // late modules need them
	if err := loadModules(bootfs.Pick(mods, bootfs.Late)); err != nil {
		return err
	}
	if err := calmVLANs(); err != nil {
		return err
	}
	if err := a.demand.loadDrivers(); err != nil {
		return err
	}
	a.console.look()
	a.phases.done("late modules")
	return nil
}

// useFiles lets the box have the file systems of the host that the kernel's command line names: see
// bootfs.LayersParameter and what follows it.
func (a *agent) useFiles() error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read the kernel's command line: %w", err)
	}
	for name, use := range map[string]func(kind, source string, prepare func() error){
		bootfs.LayersParameter: a.box.UseFiles, bootfs.HostParameter: a.box.UseHost,
		bootfs.RosettaParameter: a.box.UseRosetta,
	} {
		kind, source, ok := strings.Cut(parameter(string(cmdline), name), ":")
		if ok && kind != "" && source != "" {
			use(kind, source, func() error { return a.demand.load(kind, "loop", "binfmt_misc") })
		}
	}
	return nil
}

func readModules() ([]bootfs.Module, error) {
	text, err := os.ReadFile(bootfs.ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	return bootfs.Parse(text)
}

func loadModules(mods []bootfs.Module) error {
	for _, m := range mods {
		fd, err := unix.Open(m.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open module %s: %w", m.Path, err)
		}
		err = unix.FinitModule(fd, "", 0)
		unix.Close(fd)
		// A processor without what a module needs says ENODEV: another module of the same kind serves then.
		if err != nil && err != unix.EEXIST && err != unix.ENODEV {
			return fmt.Errorf("load module %s: %w", m.Path, err)
		}
	}
	return nil
}
