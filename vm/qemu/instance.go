package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/console"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// grace is how long is waited for what must follow at once from something else: that QEMU exits after it has closed its
// sockets, and that its sockets end after it has exited.
const grace = 2 * time.Second

// Instance is a machine in a QEMU process.
type Instance struct {
	name   string
	cid    uint32 // of the guest on AF_VSOCK; 0: streams go through the multiplexer
	log    *slog.Logger
	proc   *process
	socks  *sockets
	stderr *tailBuffer
	con    *console.Log
	qmp    *qmp // set by connect

	life   context.Context // ends with the process
	die    context.CancelFunc
	opened chan struct{} // closed when the guest has opened the agent's port
	ready  chan struct{} // closed when session is set
	done   chan struct{} // closed when everything has ended; err is set then
	err    error

	migrated chan string // gets the status of a migration that has ended
	saveable bool        // the memory is a file that the guest writes to
	forkable bool
	memory   *os.File   // the machine's own, where it needs that; nil otherwise. Closed with the machine
	forking  sync.Mutex // held while the machine is forked

	session *mux.Session
	vsockUp atomic.Bool // the guest has answered on AF_VSOCK

	mu      sync.Mutex
	wg      sync.WaitGroup // goroutines that work for the machine
	ending  bool           // no more goroutines
	asked   bool           // Close or Shutdown was called
	reason  string         // of QEMU's SHUTDOWN event
	linkErr error          // why the link to the agent broke
	isOpen  bool           // opened is closed
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
)

// newInstance makes the instance of a process that was started, and the goroutines that own it.
func newInstance(log *slog.Logger, c command, p *process, s *sockets, stderr *tailBuffer, memory *os.File) *Instance {
	i := &Instance{
		name: c.spec.Name, cid: c.vsockCID, log: log, proc: p, socks: s, stderr: stderr, con: &console.Log{Tee: c.spec.Console},
		opened: make(chan struct{}), ready: make(chan struct{}), done: make(chan struct{}),
		disks: make(map[string]*disk), deleted: make(map[string]chan struct{}),
		migrated: make(chan string, 1), saveable: c.spec.MemoryFile != "" && c.spec.State == "", memory: memory, forkable: c.spec.Forkable,
	}
	for _, d := range c.spec.Disks {
		i.disks[d.ID] = &disk{Disk: d, lun: d.Slot - 1}
	}
	i.life, i.die = context.WithCancel(context.Background())
	i.wg.Go(func() { io.Copy(i.con, s.console) })
	go i.own()
	return i
}

// connect waits until QEMU takes commands and has made the machine.
func (i *Instance) connect(ctx context.Context, state string) error {
	q, err := newQMP(ctx, i.socks.qmp, i.event)
	if err != nil {
		return err
	}
	started := i.work(func() { <-q.done })
	if !started {
		q.close()
		return fmt.Errorf("%w: it ended at once", errs.ErrUnavailable)
	}
	if err := q.version.check(); err != nil {
		return err
	}
	// The answer comes when the machine is made, and it tells of a port that was opened before events could.
	var devs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := q.execute(ctx, "query-chardev", nil, &devs); err != nil {
		return err
	}
	for _, d := range devs {
		if d.Label == agentDev && d.Open {
			i.portOpened()
		}
	}
	i.qmp = q
	if state != "" {
		if err := i.restore(ctx, state); err != nil {
			return fmt.Errorf("go on from %s: %w", state, err)
		}
	}
	if !i.work(i.link) {
		return fmt.Errorf("%w: it ended at once", errs.ErrUnavailable)
	}
	return nil
}

// work runs f in a goroutine for which the end of the machine waits. It returns false where that has come already.
func (i *Instance) work(f func()) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ending {
		return false
	}
	i.wg.Go(f)
	return true
}

// own waits for the end of the process and then ends everything else.
func (i *Instance) own() {
	<-i.proc.done
	i.die()
	// What QEMU wrote last is read before the sockets end.
	i.socks.console.SetReadDeadline(time.Now().Add(grace))
	i.socks.qmp.SetReadDeadline(time.Now().Add(grace))
	i.socks.agent.SetReadDeadline(time.Now().Add(grace))
	i.mu.Lock()
	i.ending = true
	i.mu.Unlock()
	i.wg.Wait()
	i.socks.closeOurs()
	if i.memory != nil {
		i.memory.Close()
	}
	i.mu.Lock()
	i.err = i.why()
	i.mu.Unlock()
	if i.err != nil {
		i.log.Warn("machine ended", "error", i.err)
	} else {
		i.log.Info("machine ended")
	}
	close(i.done)
}

// why returns why the machine ended. i.mu is held.
func (i *Instance) why() error {
	var text string
	switch {
	case i.asked || i.reason == "guest-shutdown":
		return nil
	case i.linkErr != nil:
		text = "the guest broke the link to its agent: " + i.linkErr.Error()
	case i.reason == "guest-reset" || i.reason == "guest-panic":
		text = "the guest reset itself"
		if line := i.con.PanicLine(); line != "" {
			text = "the guest's kernel panicked: " + line
		}
	default:
		text = "QEMU ended (" + exitText(i.proc.err) + ")"
		if s := i.stderr.String(); s != "" {
			text += ": " + s
		}
	}
	if lines := i.con.LastWords(); len(lines) > 0 {
		text += "; last lines of the console:\n\t" + strings.Join(lines, "\n\t")
	}
	return fmt.Errorf("machine %s: %w: %s", i.name, errs.ErrUnavailable, text)
}

// ended is the error of calls to a machine that has ended or is about to.
func (i *Instance) ended() error {
	<-i.done
	if i.err != nil {
		return i.err
	}
	return fmt.Errorf("machine %s has ended: %w", i.name, errs.ErrClosed)
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
	case <-i.life.Done():
		return
	}
	s, err := mux.Connect(i.life, i.socks.agent)
	if err == nil {
		i.session = s
		close(i.ready)
		<-s.Done() // the socket ends with QEMU at the latest
		s.Close()
		err = s.Err()
	}
	if !errors.Is(err, mux.ErrProtocol) {
		// QEMU has exited or is about to.
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-i.life.Done():
			return
		case <-t.C:
		}
	}
	i.mu.Lock()
	i.linkErr = err
	i.mu.Unlock()
	i.proc.kill()
}

// Dial opens a stream to a port of the guest. See vm.Instance. Through the multiplexer it does not wait for the guest to
// accept, so that a port on which nobody listens shows in the stream's first read.
func (i *Instance) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if i.cid != 0 {
		return i.dialVsock(ctx, port)
	}
	select {
	case <-i.ready:
	default:
		select {
		case <-i.ready:
		case <-i.life.Done():
			return nil, fmt.Errorf("dial guest port %d: %w", port, i.ended())
		case <-ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: wait for the guest's agent: %w", port, context.Cause(ctx))
		}
	}
	c, err := i.session.Dial(ctx, port)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	// The session has ended, and with it the machine.
	select {
	case <-i.done:
		return nil, fmt.Errorf("dial guest port %d: %w", port, i.ended())
	case <-ctx.Done():
		return nil, fmt.Errorf("dial guest port %d: %w", port, context.Cause(ctx))
	}
}

// execute runs a QEMU command. The machine's end is the error of a command that it interrupts.
func (i *Instance) execute(ctx context.Context, command string, args, result any) error {
	err := i.qmp.execute(ctx, command, args, result)
	if err != nil && ctx.Err() == nil && i.qmpEnded() {
		select {
		case <-i.done:
			return fmt.Errorf("QEMU command %s: %w", command, i.ended())
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
	i.ask()
	// A guest that is not there any more to hear it needs no question, so errors mean nothing here.
	i.execute(ctx, "cont", nil, nil)
	i.execute(ctx, "system_powerdown", nil, nil)
	select {
	case <-i.done:
		return nil
	case <-ctx.Done():
		i.Close()
		return fmt.Errorf("shut down machine %s: killed: %w", i.name, context.Cause(ctx))
	}
}

func (i *Instance) ask() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = true
}

// Done is closed when the machine has ended. See vm.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Err tells why the machine ended. See vm.Instance.
func (i *Instance) Err() error {
	select {
	case <-i.done:
		return i.err
	default:
		return nil
	}
}

// Close kills the machine and waits for its end. See vm.Instance.
func (i *Instance) Close() error {
	i.ask()
	i.proc.kill()
	<-i.done
	return nil
}

// ConsoleTail returns the last lines of the guest's console. See vm.ConsoleTailer. It keeps at most 200.
func (i *Instance) ConsoleTail() string { return strings.Join(i.con.Tail(console.MaxLines), "\n") }
