package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/vmlife"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// grace is how long is waited for what must follow at once from something else: that QEMU exits after it has closed its
// sockets, and that its sockets end after it has exited.
const grace = 2 * time.Second

// Instance is a machine in a QEMU process.
type Instance struct {
	life   *vmlife.Life // begins to end with the process
	spec   vm.Spec      // it was started with
	cid    uint32       // of the guest on AF_VSOCK; 0: streams go through the multiplexer
	log    *slog.Logger
	proc   *process
	socks  *sockets
	stderr *tailBuffer
	qmp    *qmp          // set by connect
	opened chan struct{} // closed when the guest has opened the agent's port

	migrated chan string // gets the status of a migration that has ended
	memory   *os.File    // the machine's own, where it needs that; nil otherwise. Closed with the machine
	forking  sync.Mutex  // held while the machine is forked

	vsockUp atomic.Bool // the guest has answered on AF_VSOCK

	image   string // that QEMU has gone on from; "" is none
	learned learned

	work vmlife.Group // goroutines that work for the machine

	mu      sync.Mutex
	reason  string // of QEMU's SHUTDOWN event
	isOpen  bool   // opened is closed
	disks   map[string]*disk
	deleted map[string]chan struct{} // closed when QEMU says that the device is gone
}

var (
	_ vm.Instance      = (*Instance)(nil)
	_ vm.DiskAttacher  = (*Instance)(nil)
	_ vm.Pauser        = (*Instance)(nil)
	_ vm.ConsoleTailer = (*Instance)(nil)
	_ vm.Snapshotter   = (*Instance)(nil)
	_ vm.Forker        = (*Instance)(nil)
	_ vm.Networked     = (*Instance)(nil)
	_ vm.Learner       = (*Instance)(nil)
)

// newInstance makes the instance of a process that was started, and the goroutines that own it.
func newInstance(log *slog.Logger, l launch, p *process, stderr *tailBuffer) *Instance {
	spec := l.c.spec
	i := &Instance{
		life: vmlife.New(spec.Name, log), spec: spec, cid: l.c.vsockCID, log: log, proc: p, socks: l.socks, stderr: stderr,
		opened: make(chan struct{}), disks: make(map[string]*disk), deleted: make(map[string]chan struct{}),
		migrated: make(chan string, 1), memory: l.memory, image: l.image,
	}
	for _, d := range spec.Disks {
		i.disks[d.ID] = &disk{Disk: d}
	}
	i.life.Console.Tee = spec.Console
	i.work.Go(func() { io.Copy(&i.life.Console, l.socks.console) })
	go i.own()
	return i
}

// connect waits until QEMU takes commands and has made the machine, which goes on from its state where it has one.
func (i *Instance) connect(ctx context.Context, l launch) error {
	q, err := newQMP(ctx, i.socks.qmp, l.image == "", i.event)
	if err != nil {
		return err
	}
	started := i.work.Go(func() { <-q.done })
	if !started {
		q.close()
		return fmt.Errorf("%w: it ended at once", errs.ErrUnavailable)
	}
	i.qmp = q
	switch state := l.c.spec.State; {
	case l.image != "":
		if err := i.goOn(ctx, l.c.spec.Disks); err != nil {
			return fmt.Errorf("go on from %s: %w", l.image, err)
		}
	case state != "":
		if err := i.complete(ctx); err != nil {
			return err
		}
		if err := i.restore(ctx, state); err != nil {
			return fmt.Errorf("go on from %s: %w", state, err)
		}
	default:
		if err := i.complete(ctx); err != nil {
			return err
		}
	}
	if !i.work.Go(i.link) {
		return fmt.Errorf("%w: it ended at once", errs.ErrUnavailable)
	}
	return nil
}

// complete waits until QEMU has made the machine.
func (i *Instance) complete(ctx context.Context) error {
	if err := i.qmp.version.check(); err != nil {
		return err
	}
	// The answer comes when the machine is made, and it tells of a port that was opened before events could.
	var devs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := i.qmp.execute(ctx, "query-chardev", nil, &devs); err != nil {
		return err
	}
	for _, d := range devs {
		if d.Label == agentDev && d.Open {
			i.portOpened()
		}
	}
	return nil
}

// own waits for the end of the process and then ends everything else.
func (i *Instance) own() {
	<-i.proc.done
	i.life.BeginEnd()
	// What QEMU wrote last is read before the sockets end.
	i.socks.console.SetReadDeadline(time.Now().Add(grace))
	i.socks.qmp.SetReadDeadline(time.Now().Add(grace))
	i.socks.agent.SetReadDeadline(time.Now().Add(grace))
	i.work.Close()
	i.work.Wait()
	i.socks.closeOurs()
	if i.memory != nil {
		i.memory.Close()
	}
	i.noteLearned()
	i.life.End(i.cause())
}

// cause returns why the machine ended, "" where that is as it should be. QEMU has ended, and all that reads from it.
func (i *Instance) cause() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	reset := i.reason == "guest-reset" || i.reason == "guest-panic"
	switch line := i.life.Console.PanicLine(); {
	case i.reason == "guest-shutdown":
		return ""
	case i.life.Condemned() != "":
		return i.life.Condemned()
	case reset && line != "":
		return "the guest's kernel panicked: " + line
	case reset:
		return "the guest reset itself"
	}
	text := "QEMU ended (" + i.proc.end().Error() + ")"
	if s := i.stderr.String(); s != "" {
		text += ": " + s
	}
	return text
}

// event takes an event of QEMU. It must not wait.
func (i *Instance) event(e qmpEvent) {
	var data struct {
		Reason string `json:"reason"`
		ID     string `json:"id"`
		Open   bool   `json:"open"`
		Device string `json:"device"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil && len(e.Data) > 0 {
		return
	}
	i.log.Debug("QEMU event", "event", e.Name)
	switch e.Name {
	case "SHUTDOWN":
		i.mu.Lock()
		defer i.mu.Unlock()
		i.reason = data.Reason
	case "VSERPORT_CHANGE":
		if data.ID == agentDev && data.Open {
			i.portOpened()
		}
	case "MIGRATION":
		if data.Status == "completed" || data.Status == "failed" || data.Status == "cancelled" {
			select {
			case i.migrated <- data.Status:
			default: // nobody asked for it
			}
		}
	case "DEVICE_DELETED":
		i.mu.Lock()
		defer i.mu.Unlock()
		if gone := i.deleted[data.Device]; gone != nil {
			delete(i.deleted, data.Device)
			close(gone)
		}
	}
}

func (i *Instance) portOpened() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.isOpen {
		i.isOpen = true
		close(i.opened)
	}
}

// link connects to the agent when it is there, and ends the machine when the link breaks.
func (i *Instance) link() {
	select {
	case <-i.opened:
	case <-i.life.Context().Done():
		return
	}
	if err := i.life.Link(i.socks.agent); err != nil {
		i.life.Condemn("the guest broke the link to its agent: " + err.Error())
		i.proc.kill()
	}
}

// Dial opens a stream to a port of the guest. See vm.Instance. Through the multiplexer it does not wait for the guest to
// accept, so that a port on which nobody listens shows in the stream's first read.
func (i *Instance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if i.cid != 0 {
		return i.dialVsock(ctx, port)
	}
	return i.life.Dial(ctx, port)
}

// execute runs a QEMU command. The machine's end is the error of a command that it interrupts.
func (i *Instance) execute(ctx context.Context, command string, args, result any) error {
	err := i.qmp.execute(ctx, command, args, result)
	if err != nil && ctx.Err() == nil && i.qmpEnded() {
		select {
		case <-i.life.Done():
			return fmt.Errorf("QEMU command %s: %w", command, i.life.Ended())
		case <-ctx.Done():
		}
	}
	return err
}

func (i *Instance) qmpEnded() bool {
	select {
	case <-i.qmp.done:
		// A control socket that ends while QEMU lives leaves a machine that nobody can control.
		i.proc.kill()
		return true
	default:
		return false
	}
}

// NIC returns the host's end of the network interface. See vm.Networked.
func (i *Instance) NIC() net.Conn { return i.socks.nic }

// Pause stops the guest's processors. See vm.Pauser.
func (i *Instance) Pause(ctx context.Context) error { return i.execute(ctx, "stop", nil, nil) }

// Resume lets the guest go on. See vm.Pauser.
func (i *Instance) Resume(ctx context.Context) error { return i.execute(ctx, "cont", nil, nil) }

// Shutdown asks the guest to power off and kills it when ctx ends before it has. See vm.Instance. It resumes a paused
// machine. A machine that has ended already is nil.
func (i *Instance) Shutdown(ctx context.Context) error {
	return i.life.Shutdown(ctx, func() {
		i.execute(ctx, "cont", nil, nil)
		i.execute(ctx, "system_powerdown", nil, nil)
	}, i.proc.kill)
}

// Done is closed when the machine has ended. See vm.Instance.
func (i *Instance) Done() <-chan struct{} { return i.life.Done() }

// Err tells why the machine ended. See vm.Instance.
func (i *Instance) Err() error { return i.life.Err() }

// Close kills the machine and waits for its end. See vm.Instance.
func (i *Instance) Close() error { return i.life.Close(i.proc.kill) }

// ConsoleTail returns the last lines of the guest's console. See vm.ConsoleTailer. It keeps at most 200.
func (i *Instance) ConsoleTail() string { return i.life.ConsoleTail() }
