package vz

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/mux"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

// appleSilicon is a Mac that can do everything.
func appleSilicon() host {
	return host{
		os: version{15, 1}, arch: "arm64", minCPUs: 1, maxCPUs: 8, minMemory: 4 << 20, maxMemory: 16 << 30, rosetta: true,
	}
}

// fakeSystem is a Mac whose machines are goroutines.
type fakeSystem struct {
	host  host
	tweak func(*fakeFramework) // changes a machine before it is used; nil does not

	mu   sync.Mutex
	made []*fakeFramework
}

func (f *fakeSystem) system() system {
	return system{
		look: func() (host, error) { return f.host, nil },
		open: func(p plan, nic *os.File) (framework, io.ReadCloser, error) {
			r, w := io.Pipe()
			m := &fakeFramework{
				plan: p, console: w, nic: nic, changes: make(chan state), life: make(chan struct{}), over: make(chan struct{}),
				deaf: func(uint32) error { return fmt.Errorf("nobody listens") },
			}
			if f.tweak != nil {
				f.tweak(m)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.made = append(f.made, m)
			return m, r, nil
		},
		saves: func(plan) error { return nil },
	}
}

// fakeFramework behaves as a machine of the framework does, with the guest of the conformance suite in it. Its functions
// that are not nil run before what they are named for, and may wait or fail.
type fakeFramework struct {
	plan    plan
	console *io.PipeWriter
	nic     *os.File // nil is none
	changes chan state
	life    chan struct{} // closed when the machine has ended
	over    chan struct{} // closed by release

	onStart, onStop, onPause, onSave func() error
	deaf                             func(port uint32) error // answers the first attempts to connect
	deafFor                          int

	mu      sync.Mutex
	running bool
	paused  chan struct{} // closed when it goes on; nil where it is not paused
	tries   int
	ended   bool
	memory  string // what the guest was told to remember
	conns   []net.Conn
	wg      sync.WaitGroup
}

var _ framework = (*fakeFramework)(nil)

func call(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

// wrongState is what the framework says where a call does not fit the state.
func wrongState() error {
	return &failure{domain: domain, code: codeStateTransition, text: "wrong state"}
}

func (f *fakeFramework) start() error {
	if err := call(f.onStart); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running || f.ended {
		return wrongState()
	}
	f.running = true
	f.wg.Go(func() { f.tell(stateOther) })
	return nil
}

func (f *fakeFramework) tell(s state) {
	select {
	case f.changes <- s:
	case <-f.over:
	}
}

// end ends the machine by itself.
func (f *fakeFramework) end(s state) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return
	}
	f.ended = true
	f.running = false
	close(f.life)
	for _, c := range f.conns {
		c.Close()
	}
	f.wg.Go(func() { f.tell(s) })
}

func (f *fakeFramework) stop() error {
	if err := call(f.onStop); err != nil {
		return err
	}
	f.mu.Lock()
	running := f.running
	f.mu.Unlock()
	if !running {
		return wrongState()
	}
	f.end(stateStopped)
	return nil
}

func (f *fakeFramework) requestStop() error { return nil } // the suite's guest ignores the power button

func (f *fakeFramework) pause() error {
	if err := call(f.onPause); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running || f.paused != nil {
		return wrongState()
	}
	f.paused = make(chan struct{})
	return nil
}

func (f *fakeFramework) resume() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running || f.paused == nil {
		return wrongState()
	}
	close(f.paused)
	f.paused = nil
	return nil
}

func (f *fakeFramework) save(path string) error {
	if err := call(f.onSave); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running || f.paused == nil {
		return wrongState()
	}
	return os.WriteFile(path, []byte(f.memory), 0o600)
}

func (f *fakeFramework) restore(path string) error {
	memory, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running, f.paused, f.memory = true, make(chan struct{}), string(memory)
	f.wg.Go(func() { f.tell(stateOther) })
	return nil
}

func (f *fakeFramework) states() <-chan state { return f.changes }

func (f *fakeFramework) release() {
	f.end(stateStopped)
	close(f.over)
	f.wg.Wait()
	f.console.Close()
	f.nic.Close() // nil is none
}

func (f *fakeFramework) connect(port uint32) (net.Conn, error) {
	f.mu.Lock()
	f.tries++
	deaf := f.tries <= f.deafFor
	f.mu.Unlock()
	if deaf || port != mux.VsockPort {
		return nil, f.deaf(port)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.running {
		return nil, wrongState()
	}
	ours, theirs := net.Pipe()
	f.conns = append(f.conns, theirs)
	var l mux.Listener
	for _, p := range guest.Ports {
		l.Handle(p, func(c net.Conn) { guest.Serve(p, c, f) })
	}
	f.wg.Go(func() { l.Serve(context.Background(), &gated{theirs, f}) })
	return ours, nil
}

// gated is the guest's end of a connection: nothing passes while the machine is paused.
type gated struct {
	net.Conn
	f *fakeFramework
}

func (g *gated) wait() {
	g.f.mu.Lock()
	paused := g.f.paused
	g.f.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-g.f.life:
		}
	}
}

func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.wait()
	return n, err
}

func (g *gated) Write(p []byte) (int, error) {
	g.wait()
	return g.Conn.Write(p)
}

func (g *gated) WaitPeer(context.Context) error { return io.ErrClosedPipe }

// Do implements guest.Machine. Disks of the start are devices, others are files in the shared directory.
func (f *fakeFramework) Do(command string) (string, func()) {
	verb, arg, _ := strings.Cut(command, " ")
	file := filepath.Join(f.plan.layers, arg)
	for _, d := range f.plan.disks {
		if d.ID == arg {
			file = d.Path
		}
	}
	_, err := os.Stat(file)
	switch verb {
	case "poweroff":
		return "ok", func() { f.end(stateStopped) }
	case "panic": // the framework does not notice
		return "ok", func() { fmt.Fprintln(f.console, "[    9.9] Kernel panic - not syncing: fake") }
	case "say":
		fmt.Fprintln(f.console, arg)
	case "flood":
		n, _ := strconv.Atoi(arg)
		for i := range n {
			fmt.Fprintf(f.console, "flood %d of %d\n", i, n)
		}
	case "remember", "recall":
		f.mu.Lock()
		defer f.mu.Unlock()
		if verb == "remember" {
			f.memory = arg
		}
		return f.memory, nil
	case "has", "wait":
		return map[bool]string{true: "yes", false: "no"}[err == nil], nil
	case "gone":
		return map[bool]string{true: "yes", false: "no"}[err != nil], nil
	case "read":
		b, err := os.ReadFile(file)
		line, _, _ := strings.Cut(string(b), "\n")
		if err != nil {
			line = err.Error()
		}
		return line, nil
	default:
		return "unknown command", nil
	}
	return "ok", nil
}

// fakeDriver is a driver on a fake Mac. Its Spec need not name a kernel that is one.
func fakeDriver(f *fakeSystem) (*Driver, vm.Spec) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return newDriver(Config{}, f.system()), vm.Spec{Arch: "arm64", Kernel: self}
}
