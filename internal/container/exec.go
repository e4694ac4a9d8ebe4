package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ids"
)

// ExecSpec describes a process to run in a container beside its own.
type ExecSpec struct {
	Args       []string
	Env        []string // over the container's; KEY alone removes
	WorkingDir string   // "" is the container's
	User       string   // "" is the container's
	TTY        bool
	Stdin      bool
	Rows, Cols uint16
	Privileged bool
	Detach     bool
}

func (s ExecSpec) validate() error {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return invalid("command", "", "give the command to execute and its arguments")
	}
	return errors.Join(
		checkProcess(Spec{Env: s.Env, WorkingDir: s.WorkingDir, User: s.User}),
		validateStrings(slices.Concat(s.Args, s.Env, []string{s.WorkingDir, s.User})),
	)
}

// execution is a process that was executed in a container.
type execution struct {
	id   string
	spec ExecSpec
	last api.ExecInspectReply // under Manager.mu
}

// maxExecs is how many processes a container's entry knows, the newest.
const maxExecs = 1024

// Execution is a connection to a process in a container, or in a machine itself.
type Execution struct {
	*agent.Process
	m     *Manager
	e     *entry // nil in a machine
	x     *execution
	agent Agent
}

// ExecInfo is how a process in a container stands.
type ExecInfo struct {
	ID, Container string
	Running       bool
	PID           int // in the guest
	Exit          api.Exit
	Spec          ExecSpec
}

// Exec executes a command in a running container and returns when it has been.
func (m *Manager) Exec(ctx context.Context, ref string, s ExecSpec, stdout, stderr io.Writer) (*Execution, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	if e.info.State != StateRunning || e.inst == nil {
		defer m.mu.Unlock()
		return nil, e.conflict("exec", "it must run")
	}
	x := &execution{id: newID(), spec: s}
	x.last = api.ExecInspectReply{ID: e.id, Running: true}
	a := e.inst.machine.Agent()
	req := api.ExecRequest{ID: e.id, ExecID: x.id, Process: execProcess(e.inst.req.Process, s), Privileged: s.Privileged, Detach: s.Detach}
	m.mu.Unlock()
	p, err := a.Exec(ctx, req, stdout, stderr)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.execs = append(e.execs, x); len(e.execs) > maxExecs {
		e.execs = slices.Clone(e.execs[len(e.execs)-maxExecs:])
	}
	m.publish(event.ExecStarted, e.info, map[string]string{event.AttrExecID: x.id})
	return &Execution{Process: p, m: m, e: e, x: x, agent: a}, nil
}

// execProcess joins the process of a container with what is asked for another one in it. What confines the one confines
// the other.
func execProcess(p api.Process, s ExecSpec) api.Process {
	p.Args = s.Args
	p.Env = mergeEnv(p.Env, s.Env)
	p.Cwd = first(s.WorkingDir, p.Cwd)
	if s.User != "" {
		p.User, p.Groups = s.User, nil
	}
	p.TTY, p.Stdin, p.Size = s.TTY, s.Stdin, api.Size{Rows: s.Rows, Cols: s.Cols}
	if s.TTY && !hasEnv(p.Env, "TERM") {
		p.Env = append(slices.Clip(p.Env), "TERM=xterm")
	}
	if s.Privileged {
		p.Capabilities, p.Seccomp = allCapabilities(), nil
	}
	return p
}

// ID returns the id of the process.
func (x *Execution) ID() string { return x.x.id }

// ContainerID returns the id of the container, "" in a machine.
func (x *Execution) ContainerID() string {
	if x.e == nil {
		return ""
	}
	return x.e.id
}

// Signal sends a signal to the process. One that has ended is ErrConflict.
func (x *Execution) Signal(ctx context.Context, signal string) error {
	signal = first(signal, "KILL")
	if err := CheckSignal(signal); err != nil {
		return err
	}
	_, err := x.agent.ExecInspect(ctx, api.ExecInspectRequest{ExecID: x.x.id, Signal: signal})
	return err
}

// Wait waits until the process has ended and all its output was written. Of a detached one it waits for the end only.
func (x *Execution) Wait(ctx context.Context) (api.Exit, error) {
	var exit api.Exit
	var err error
	if x.x.spec.Detach {
		var rep api.ExecInspectReply
		rep, err = x.agent.ExecInspect(ctx, api.ExecInspectRequest{ExecID: x.x.id, Wait: true})
		exit = rep.Exit
	} else {
		exit, err = x.Process.Wait(ctx)
	}
	if err != nil {
		return api.Exit{}, err
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.x.last.Running, x.x.last.Exit = false, exit
	return exit, nil
}

// InspectExec tells how a process stands that Exec executed. Of one whose machine has ended it tells what was known last.
func (m *Manager) InspectExec(ctx context.Context, id string) (ExecInfo, error) {
	m.mu.Lock()
	e, x, err := m.findExec(id)
	if err != nil {
		m.mu.Unlock()
		return ExecInfo{}, err
	}
	var a Agent
	if e.inst != nil && x.last.Running {
		a = e.inst.machine.Agent()
	}
	m.mu.Unlock()
	var rep api.ExecInspectReply
	if a != nil {
		rep, err = a.ExecInspect(ctx, api.ExecInspectRequest{ExecID: x.id})
		if err != nil && !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrUnavailable) {
			return ExecInfo{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case a != nil && err == nil:
		x.last = rep
	case x.last.Running: // it went with its container, and nobody saw how
		x.last.Running, x.last.Exit = false, api.Exit{Code: unknownExitCode}
	}
	return ExecInfo{ID: x.id, Container: e.id, Running: x.last.Running, PID: x.last.PID, Exit: x.last.Exit, Spec: x.spec}, nil
}

// ResizeExec sets the size of the terminal of a process that Exec executed.
func (m *Manager) ResizeExec(ctx context.Context, id string, size api.Size) error {
	m.mu.Lock()
	e, x, err := m.findExec(id)
	if err == nil && (e.inst == nil || !x.last.Running) {
		err = fmt.Errorf("resize terminal: %w: process %s has ended", errs.ErrConflict, clip(id))
	}
	if err != nil {
		m.mu.Unlock()
		return err
	}
	a := e.inst.machine.Agent()
	m.mu.Unlock()
	_, err = a.ExecInspect(ctx, api.ExecInspectRequest{ExecID: x.id, Size: size})
	return err
}

// findExec finds a process by its id or a unique prefix. The caller holds mu.
func (m *Manager) findExec(id string) (*entry, *execution, error) {
	if m.closed {
		return nil, nil, errs.ErrClosed
	}
	type known struct {
		owner *entry
		x     *execution
	}
	all := make(map[string]known)
	for _, e := range m.entries {
		for _, x := range e.execs {
			all[x.id] = known{e, x}
		}
	}
	id, err := ids.Find("exec", id, maps.Keys(all))
	return all[id].owner, all[id].x, err
}

// Stats tells what a running container uses.
func (m *Manager) Stats(ctx context.Context, ref string) (api.StatsReply, error) {
	a, id, err := m.running(ctx, ref, "read statistics of container")
	if err != nil {
		return api.StatsReply{}, err
	}
	return a.Stats(ctx, api.StatsRequest{ID: id})
}

// Top lists the processes of a running container.
func (m *Manager) Top(ctx context.Context, ref string) ([]api.ProcessInfo, error) {
	a, id, err := m.running(ctx, ref, "list processes of container")
	if err != nil {
		return nil, err
	}
	rep, err := a.Top(ctx, api.TopRequest{ID: id})
	return rep.Processes, err
}

// Dial connects to an address in the network of a running container.
func (m *Manager) Dial(ctx context.Context, ref, network, address string) (net.Conn, error) {
	a, id, err := m.running(ctx, ref, "dial")
	if err != nil {
		return nil, err
	}
	return a.DialContainer(ctx, api.DialRequest{ID: id, Network: network, Address: address})
}

// running finds a container that has a process.
func (m *Manager) running(ctx context.Context, ref, what string) (Agent, string, error) {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return nil, "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if st := e.info.State; st != StateRunning && st != StatePaused || e.inst == nil {
		return nil, "", e.conflict(what, "it must run")
	}
	return e.inst.machine.Agent(), e.id, nil
}

// Logs reads what a container wrote. release is to be called when the reading has ended.
func (m *Manager) Logs(ctx context.Context, ref string, req api.LogsRequest) (_ *agent.Logs, release func(), err error) {
	a, id, release, err := m.Open(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	req.ID = id
	l, err := a.Logs(ctx, req)
	if err != nil {
		release()
		return nil, nil, err
	}
	return l, release, nil
}
