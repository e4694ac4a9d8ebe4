package arcbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/machines"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// DefaultMachine is the name of the machine that is there without being created. Containers run in it unless their spec
// names another one. It is what Config.VM says.
const DefaultMachine = container.DefaultMachine

// MachineState is where a machine is in its life.
type MachineState string

// The states of a machine.
const (
	MachineStopped  MachineState = "stopped"  // it does not run; what needs it starts it
	MachineStarting MachineState = "starting" // it is being started
	MachineRunning  MachineState = "running"  // its agent has answered
	MachinePaused   MachineState = "paused"   // its processors stand still
	MachineStopping MachineState = "stopping" // it is being shut down
	MachineCrashed  MachineState = "crashed"  // it ended by itself
	MachineFailed   MachineState = "failed"   // it could not be started
	MachineForeign  MachineState = "foreign"  // another process has it, and knows its state
)

// MachineSpec describes a machine to make. Only Name is required. A value that cannot work is ErrInvalid, with the field
// and what it may be, before anything is made.
type MachineSpec struct {
	Name      string            // unique: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first
	CPUs      int               // 0 is that of Config.VM
	Memory    int64             // bytes; 0 is that of Config.VM
	Disk      int64             // bytes of its disk, which is made at the first start and keeps its size; 0 is that of Config.VM
	Labels    map[string]string // anything
	Ephemeral bool              // it has no record, and goes with its disk when the Runtime is closed

	// ReturnMemory gives memory that the guest does not use any more back to the host within a few seconds. It is for
	// machines that run for long. As with Forkable, with which it cannot be had together, the memory is the machine's own.
	ReturnMemory bool
	// Forkable lets SnapshotMachine save it. Its memory is its own then, which costs some 40 ms at the start and the memory
	// that it would else share with other machines of its shape.
	Forkable bool
	// Snapshot makes the machine from a snapshot, by id or name: its first start goes on from there, with the containers
	// that ran. They have ids of their own, and where a name is taken here, a name with "-" and the machine's added. CPUs,
	// Memory and Disk are those of the snapshot. "" is none.
	//
	// The containers find each other by the names and addresses that they had, in networks that are theirs alone: NAME-MACHINE
	// is the twin of the network NAME, with its rules and functions, until the machine is removed. Data of their volumes is
	// their own. Ports are published where they were, or on free ports of the host where those are taken, which
	// ContainerInfo.Ports tells. What of the host they had mounted gives errors until their next start.
	Snapshot string
}

// MachineInfo is a machine as it was at one moment.
type MachineInfo struct {
	Name      string
	State     MachineState
	CPUs      int
	Memory    int64 // bytes
	Disk      int64 // bytes
	Labels    map[string]string
	Ephemeral bool // it goes when the Runtime is closed
	Forkable  bool // SnapshotMachine can save it

	Created    time.Time // of the default machine, when this Runtime was made
	Started    time.Time // the last time, in this process; zero before
	Reason     string    // why it is in its state, where that was not asked for: an error, in words
	Restarts   int       // after crashes, in this process
	Containers int       // that belong to it
	Kernel     string    // release of the guest's kernel, where it runs
}

func (r *Runtime) machineInfo(i machines.Info) MachineInfo {
	states := map[lifecycle.State]MachineState{
		lifecycle.Stopped: MachineStopped, lifecycle.Starting: MachineStarting, lifecycle.Ready: MachineRunning,
		lifecycle.Stopping: MachineStopping, lifecycle.Crashed: MachineCrashed, lifecycle.Failed: MachineFailed,
		lifecycle.Closed: MachineStopped,
	}
	out := MachineInfo{
		Name: i.Spec.Name, State: states[i.State], CPUs: i.Spec.CPUs, Memory: i.Spec.Memory, Disk: i.Spec.Disk,
		Labels: i.Spec.Labels, Ephemeral: i.Spec.Ephemeral, Forkable: i.Spec.Forkable, Created: i.Created, Started: i.Started, Reason: i.Reason,
		Restarts: i.Restarts, Containers: len(r.containers.IDs(i.Spec.Name)),
	}
	if m, ok := r.machines.Current(i.Spec.Name); ok {
		out.Kernel = m.Guest().Kernel
	}
	switch {
	case i.Foreign:
		out.State = MachineForeign
	case i.Paused && i.State == lifecycle.Ready:
		out.State = MachinePaused
	}
	return out
}

// CreateMachine makes a machine. It does not start it: StartMachine does, or the first container that names it. A name
// that is taken is ErrExists.
func (r *Runtime) CreateMachine(ctx context.Context, spec MachineSpec) (MachineInfo, error) {
	return call(ctx, r, "CreateMachine", spec.Name, func(ctx context.Context) (MachineInfo, error) {
		s := machines.Spec{
			Name: spec.Name, CPUs: spec.CPUs, Memory: spec.Memory, Disk: spec.Disk, Labels: maps.Clone(spec.Labels),
			Ephemeral: spec.Ephemeral || r.cfg.Ephemeral, Forkable: spec.Forkable, Returns: spec.ReturnMemory,
		}
		var prepare func(*machine.Dir) error
		var err error
		if spec.Snapshot != "" {
			if s, prepare, err = r.fromSnapshot(ctx, s, spec.Snapshot, true); err != nil {
				return MachineInfo{}, err
			}
		}
		info, err := r.machines.Create(s, prepare)
		if err != nil {
			return MachineInfo{}, err
		}
		return r.machineInfo(info), nil
	})
}

// StartMachine starts a machine and returns when its agent has answered. It runs, idle or not, until StopMachine or
// Close. One that runs already stays as it is, but is not stopped any more for being idle.
//
// A machine that another process has is ErrInUse, at once or after Config.LockTimeout; the error names the process.
func (r *Runtime) StartMachine(ctx context.Context, name string) error {
	return callNone(ctx, r, "StartMachine", name, func(ctx context.Context) error { return r.machines.Start(ctx, name) })
}

// StopMachine powers a machine off, whoever uses it, and returns when nothing of it is left but its disk. Its containers
// have exited then, and no policy restarts them. One that does not run is left as it is, which is no error.
func (r *Runtime) StopMachine(ctx context.Context, name string) error {
	return callNone(ctx, r, "StopMachine", name, func(ctx context.Context) error { return r.machines.Stop(ctx, name) })
}

// RestartMachine is StopMachine and StartMachine, so that a machine which does not run is started.
func (r *Runtime) RestartMachine(ctx context.Context, name string) error {
	return callNone(ctx, r, "RestartMachine", name, func(ctx context.Context) error {
		if err := r.machines.Stop(ctx, name); err != nil {
			return err
		}
		return r.machines.Start(ctx, name)
	})
}

// PauseMachine stops the processors of a running machine, so that it costs its memory and nothing else. Calls that need
// it are ErrConflict, or wait where they were made before. One that does not run, or is paused, is ErrConflict.
func (r *Runtime) PauseMachine(ctx context.Context, name string) error {
	return callNone(ctx, r, "PauseMachine", name, func(ctx context.Context) error { return r.machines.Pause(ctx, name) })
}

// ResumeMachine lets a paused machine go on, with the time of now. One that is not paused is ErrConflict.
func (r *Runtime) ResumeMachine(ctx context.Context, name string) error {
	return callNone(ctx, r, "ResumeMachine", name, func(ctx context.Context) error { return r.machines.Resume(ctx, name) })
}

// RemoveMachineOptions tunes RemoveMachine. The zero value works.
type RemoveMachineOptions struct {
	Force bool // stop a machine that runs, and remove the containers that belong to it
}

// RemoveMachine removes a machine with all that is on its disk. One that runs is ErrConflict and one that has containers
// ErrInUse, without RemoveMachineOptions.Force. The default machine cannot be removed: ErrConflict.
func (r *Runtime) RemoveMachine(ctx context.Context, name string, opts RemoveMachineOptions) error {
	return callNone(ctx, r, "RemoveMachine", name, func(ctx context.Context) error {
		defer r.networks.RemoveTwins(func(of string) bool {
			_, err := r.machines.Inspect(of)
			return of == name && errors.Is(err, ErrNotFound)
		})
		return r.machines.Remove(ctx, name, opts.Force, func(ctx context.Context) error {
			ids := r.containers.IDs(name)
			if len(ids) > 0 && !opts.Force {
				return fmt.Errorf("remove machine %s: %w: it has %d containers: remove them first, or force the removal", name, ErrInUse, len(ids))
			}
			for _, id := range ids {
				if err := r.containers.Remove(ctx, id, true); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// UpdateMachineOptions says what UpdateMachine changes. A zero field changes nothing.
type UpdateMachineOptions struct {
	CPUs   int               // of the next start
	Memory int64             // bytes, of the next start
	Labels map[string]string // all of them; nil leaves them, empty removes them
}

// UpdateMachine changes a machine's record and returns it. The default machine is ErrConflict: it is what Config.VM says.
func (r *Runtime) UpdateMachine(ctx context.Context, name string, opts UpdateMachineOptions) (MachineInfo, error) {
	return call(ctx, r, "UpdateMachine", name, func(ctx context.Context) (MachineInfo, error) {
		info, err := r.machines.Update(ctx, name, machines.Change(opts))
		if err != nil {
			return MachineInfo{}, err
		}
		return r.machineInfo(info), nil
	})
}

// ListMachinesOptions tunes ListMachines. The zero value lists all.
type ListMachinesOptions struct{}

// ListMachines returns all machines of the data directory by name, those of other processes included.
func (r *Runtime) ListMachines(ctx context.Context, opts ListMachinesOptions) ([]MachineInfo, error) {
	return call(ctx, r, "ListMachines", "", func(context.Context) ([]MachineInfo, error) {
		infos := r.machines.List()
		out := make([]MachineInfo, len(infos))
		for i, info := range infos {
			out[i] = r.machineInfo(info)
		}
		return out, nil
	})
}

// InspectMachine returns one machine.
func (r *Runtime) InspectMachine(ctx context.Context, name string) (MachineInfo, error) {
	return call(ctx, r, "InspectMachine", name, func(context.Context) (MachineInfo, error) {
		info, err := r.machines.Inspect(name)
		if err != nil {
			return MachineInfo{}, err
		}
		return r.machineInfo(info), nil
	})
}

// MachineConsole returns the last lines that a machine's guest has printed on its console, at most 200, without control
// characters. A machine that does not run is ErrConflict. Config.VM.Console gets all of it while it comes.
func (r *Runtime) MachineConsole(ctx context.Context, name string) (string, error) {
	return call(ctx, r, "MachineConsole", name, func(context.Context) (string, error) {
		m, err := r.runningMachine(name)
		if err != nil {
			return "", err
		}
		return m.ConsoleTail(), nil
	})
}

// DialMachine connects to a port on which something in the guest of a machine listens for the host: a virtio socket, or
// what stands for it. The agent has port 1024. The machine is started where it does not run, and held until the
// connection is closed. A port on which nobody listens is ErrUnavailable, at once or from the first read.
func (r *Runtime) DialMachine(ctx context.Context, name string, port uint32) (net.Conn, error) {
	return call(ctx, r, "DialMachine", name, func(ctx context.Context) (net.Conn, error) {
		acquire := r.machines.Acquire
		if port == api.Port {
			acquire = r.machines.Use // the agent may be asked for what is on the disk
		}
		m, release, err := acquire(ctx, name)
		if err != nil {
			return nil, err
		}
		c, err := m.Dial(ctx, port)
		if err != nil {
			release()
			return nil, err
		}
		return &heldConn{Conn: c, release: release}, nil
	})
}

// HoldMachine keeps a machine running, which it starts where it does not run, until release is called. release may be
// called more than once, and late: a hold ends with the run of the machine for which it was taken.
func (r *Runtime) HoldMachine(ctx context.Context, name string) (release func(), err error) {
	return call(ctx, r, "HoldMachine", name, func(ctx context.Context) (func(), error) {
		_, release, err := r.machines.Acquire(ctx, name)
		return release, err
	})
}

// runningMachine returns a machine that runs.
func (r *Runtime) runningMachine(name string) (*machine.Machine, error) {
	info, err := r.machines.Inspect(name)
	if err != nil {
		return nil, err
	}
	m, ok := r.machines.Current(name)
	if !ok {
		return nil, fmt.Errorf("machine %s: %w: it is %s: start it first", name, ErrConflict, r.machineInfo(info).State)
	}
	return m, nil
}

// heldConn is a connection that holds something until it is closed.
type heldConn struct {
	net.Conn
	release func()
}

// Close closes the connection and lets go of what it held.
func (c *heldConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite tells the guest that no more comes, where the transport can.
func (c *heldConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return fmt.Errorf("half-close: %w", ErrUnsupported)
}
