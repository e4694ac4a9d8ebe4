package arcbox

import (
	"context"
	"errors"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/internal/network"
	"github.com/arcboxlabs/arcbox-go/machine"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// ContainerState is where a container is in its life.
type ContainerState string

// The states of a container.
const (
	ContainerCreated    = ContainerState(container.StateCreated)    // made, not started
	ContainerRunning    = ContainerState(container.StateRunning)    // its process runs
	ContainerPaused     = ContainerState(container.StatePaused)     // its processes are frozen
	ContainerRestarting = ContainerState(container.StateRestarting) // its process has ended and is started again soon, by its restart policy
	ContainerExited     = ContainerState(container.StateExited)     // its process has ended, or never could run
	ContainerRemoving   = ContainerState(container.StateRemoving)   // it is being removed
	ContainerDead       = ContainerState(container.StateDead)       // its record is damaged: it can only be removed
)

// Exit is how a process ended. It is a result: a Code other than 0 is not an error.
type Exit struct {
	Code      int    // 0 to 255; 128 and the signal's number where a signal ended it; 127 and 126 where the command could not run
	Signal    string // the signal's name without SIG, "" where none ended it
	OOMKilled bool   // the guest's kernel killed it, or a child of it, for lack of memory
}

// ContainerInfo is the record of a container as it was at one moment.
type ContainerInfo struct {
	ID           string // 64 hexadecimal digits
	Name         string
	Image        string // as the spec named it
	ImageID      string // digest of the image's config
	Machine      string // name of the machine it belongs to
	State        ContainerState
	Created      time.Time
	Started      time.Time // the last time; zero before the first start
	Finished     time.Time // the last time; zero before the first end
	PID          int       // of the process in the machine; 0 when none runs
	Exit         Exit      // of the last run
	Reason       string    // why it exited, where that was not by itself
	RestartCount int       // restarts by the policy since StartContainer

	Args       []string          // entrypoint and command together
	Env        []string          // of the image and the spec
	WorkingDir string            // of the process
	User       string            // of the process; "" is root
	Labels     map[string]string // of the image and the spec
	StopSignal string            // of the image or the spec
	TTY        bool              // as in the spec, and so the two after it
	Stdin      bool
	AutoRemove bool

	Mounts   []MountPoint  // what is mounted into it, Tmpfs aside
	Networks []Endpoint    // its places in networks; none for one whose network is not its own
	Ports    []PortMapping // that are published, while it runs, one by one

	Check  *HealthCheck  // of the image and the spec, with the defaults; nil is none
	Health *HealthInfo   // of the last run, in this program; nil where there are no checks
	Spec   ContainerSpec // what it was made from, with what RenameContainer and UpdateContainer changed
}

// HealthStatus is what the checks say of a container.
type HealthStatus string

// The states of health.
const (
	HealthStarting  = HealthStatus(container.HealthStarting)  // no check has succeeded yet, nor have enough failed
	HealthHealthy   = HealthStatus(container.HealthHealthy)   // the last checks did not all fail
	HealthUnhealthy = HealthStatus(container.HealthUnhealthy) // the last HealthCheck.Retries checks have failed
)

// HealthInfo is what the checks of a container have found.
type HealthInfo struct {
	Status        HealthStatus
	FailingStreak int            // failures in a row
	Log           []HealthResult // the last five, the oldest first
}

// HealthResult is the result of one check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int    // -1 where the command could not be executed, or did not end in time
	Output     string // the first 4 KiB of what the command wrote, and what else there is to say
}

func containerInfo(i container.Info) ContainerInfo {
	out := ContainerInfo{
		ID: i.ID, Name: i.Name, Image: i.Image, ImageID: i.ImageID, Machine: i.Machine, State: ContainerState(i.State),
		Created: i.Created, Started: i.Started, Finished: i.Finished, PID: i.PID, Exit: Exit(i.Exit), Reason: i.Reason,
		RestartCount: i.RestartCount, Args: i.Args, Env: i.Env, WorkingDir: i.WorkingDir, User: i.User, Labels: i.Labels,
		StopSignal: i.StopSignal, TTY: i.Spec.TTY, Stdin: i.Spec.Stdin, AutoRemove: i.Spec.AutoRemove,
		Check: (*HealthCheck)(i.Check), Spec: containerSpec(i.Spec),
	}
	for _, p := range i.Mounts {
		out.Mounts = append(out.Mounts, mountPoint(p))
	}
	for _, e := range i.Endpoints {
		out.Networks = append(out.Networks, endpoint(e))
	}
	for _, p := range i.Ports {
		out.Ports = append(out.Ports, portMapping(p))
	}
	if h := i.Health; h != nil {
		out.Health = &HealthInfo{Status: HealthStatus(h.Status), FailingStreak: h.FailingStreak}
		for _, r := range h.Log {
			out.Health.Log = append(out.Health.Log, HealthResult(r))
		}
	}
	return out
}

// PullPolicy says when a call fetches the image it needs. What the zero value means the call says.
type PullPolicy string

// The pull policies.
const (
	PullMissing PullPolicy = "missing" // where the store does not have it
	PullAlways  PullPolicy = "always"  // every time; what has not changed is not fetched again
	PullNever   PullPolicy = "never"   // a missing image is ErrNotFound
)

// CreateOptions tunes CreateContainer. The zero value works.
type CreateOptions struct {
	Pull         PullPolicy          // the zero value pulls what is missing
	PullProgress func(LayerProgress) // as PullOptions.Progress
}

// CreateContainer makes a container and starts the machine where it does not run. It does not start the container.
//
// The record of a container is on disk when a call that made or changed it, or waited for it, returns: the death of the
// program, by SIGKILL too, does not undo it. A power cut of the host may undo the last second. A New in a later program
// finds the container; what ran has exited then, with a Reason. What containers wrote and logged and did not sync is safe
// from the death of the program after some two seconds. A container with AutoRemove has no record.
//
// A spec that cannot work is ErrInvalid, a name that is taken ErrExists, a missing image ErrNotFound, an image that the
// machine's processor cannot run ErrUnsupported; all before anything is made.
func (r *Runtime) CreateContainer(ctx context.Context, spec ContainerSpec, opts CreateOptions) (ContainerInfo, error) {
	return call(ctx, r, "CreateContainer", refOf(spec), func(ctx context.Context) (ContainerInfo, error) {
		info, err := r.create(ctx, spec, opts)
		return containerInfo(info), err
	})
}

func refOf(spec ContainerSpec) string {
	if spec.Name != "" {
		return spec.Name
	}
	return spec.Image
}

func (r *Runtime) create(ctx context.Context, spec ContainerSpec, opts CreateOptions) (container.Info, error) {
	s := spec.compile()
	for _, p := range spec.Ports {
		ports, err := p.expand()
		if err != nil {
			return container.Info{}, err
		}
		s.Ports = append(s.Ports, ports...)
	}
	if err := s.Validate(); err != nil {
		return container.Info{}, err
	}
	if err := r.ensureImage(ctx, spec.Image, opts.Pull, opts.PullProgress); err != nil {
		return container.Info{}, err
	}
	if err := r.checkPlatform(ctx, spec.Image); err != nil {
		return container.Info{}, err
	}
	return r.containers.Create(ctx, s)
}

// ensureImage fetches an image as the policy says.
func (r *Runtime) ensureImage(ctx context.Context, ref string, policy PullPolicy, progress func(LayerProgress)) error {
	switch policy {
	case PullNever:
		return nil
	case "", PullMissing:
		if _, err := r.images.Get(ctx, ref); !errors.Is(err, ErrNotFound) {
			return err
		}
	case PullAlways:
	default:
		return badPolicy(policy)
	}
	_, err := r.pull(ctx, ref, PullOptions{Progress: progress})
	return err
}

// StartContainer starts the process of a container that was created or has exited, and returns when it has been executed.
// One that has exited finds what it wrote before. It counts as a new beginning for the restart policy.
//
// A command that does not exist is ErrCommandNotFound, one that cannot be executed ErrCommandNotExecutable; the
// container has exited then, with 127 or 126. A container that runs or is paused is ErrConflict.
func (r *Runtime) StartContainer(ctx context.Context, ref string) error {
	return callNone(ctx, r, "StartContainer", ref, func(ctx context.Context) error { return r.containers.Start(ctx, ref) })
}

// WaitCondition is what WaitContainer waits for.
type WaitCondition string

// The conditions to wait for.
const (
	WaitNotRunning = WaitCondition(container.WaitNotRunning) // it has exited, and its policy does not start it again
	WaitNextExit   = WaitCondition(container.WaitNextExit)   // its process ends, from now on
	WaitRemoved    = WaitCondition(container.WaitRemoved)    // it is removed
)

// WaitOptions tunes WaitContainer. The zero value waits until the container does not run.
type WaitOptions struct {
	Condition WaitCondition // the zero value is WaitNotRunning
}

// WaitContainer waits for the end of a container, at once where it has ended, and returns how its process ended last. A
// container that was not started yet is waited for too. Any number may wait. Where the machine ended under the container,
// or the program that ran it did, the error is ErrUnavailable.
func (r *Runtime) WaitContainer(ctx context.Context, ref string, opts WaitOptions) (Exit, error) {
	return call(ctx, r, "WaitContainer", ref, func(ctx context.Context) (Exit, error) {
		exit, err := r.containers.Wait(ctx, ref, container.Condition(opts.Condition))
		return Exit(exit), err
	})
}

// KillContainer sends a signal to the process of a running container: a name such as "TERM" or "SIGTERM", or a number;
// "" is KILL. After KILL or the container's stop signal the restart policy does not apply. A container that does not run
// is ErrConflict, an unknown signal ErrInvalid.
func (r *Runtime) KillContainer(ctx context.Context, ref, signal string) error {
	return callNone(ctx, r, "KillContainer", ref, func(ctx context.Context) error {
		return r.containers.Kill(ctx, ref, signal)
	})
}

// StopOptions tunes StopContainer and RestartContainer. The zero value is what the container's spec says.
type StopOptions struct {
	Signal  string         // in place of the container's stop signal
	Timeout *time.Duration // in place of ContainerSpec.StopTimeout; 0 kills at once after the signal, negative is for ever
}

// StopContainer asks the process of a container to end by its stop signal, kills it where it has not ended within the
// timeout, and returns when it has ended. The restart policy does not apply. A paused container is resumed for it. A
// container without a process is left as it is, which is no error.
func (r *Runtime) StopContainer(ctx context.Context, ref string, opts StopOptions) error {
	return callNone(ctx, r, "StopContainer", ref, func(ctx context.Context) error {
		return r.containers.Stop(ctx, ref, opts.Signal, opts.Timeout)
	})
}

// RestartContainer is StopContainer and StartContainer, so that one which does not run is started.
func (r *Runtime) RestartContainer(ctx context.Context, ref string, opts StopOptions) error {
	return callNone(ctx, r, "RestartContainer", ref, func(ctx context.Context) error {
		return r.containers.Restart(ctx, ref, opts.Signal, opts.Timeout)
	})
}

// PauseContainer freezes the processes of a running container and returns when none of them runs. One that does not run,
// or is paused, is ErrConflict.
func (r *Runtime) PauseContainer(ctx context.Context, ref string) error {
	return callNone(ctx, r, "PauseContainer", ref, func(ctx context.Context) error { return r.containers.Pause(ctx, ref) })
}

// ResumeContainer lets the processes of a paused container go on. One that is not paused is ErrConflict.
func (r *Runtime) ResumeContainer(ctx context.Context, ref string) error {
	return callNone(ctx, r, "ResumeContainer", ref, func(ctx context.Context) error { return r.containers.Resume(ctx, ref) })
}

// RenameContainer gives a container another name. A name that is taken is ErrExists; that of its own changes nothing.
func (r *Runtime) RenameContainer(ctx context.Context, ref, name string) error {
	return callNone(ctx, r, "RenameContainer", ref, func(ctx context.Context) error {
		return r.containers.Rename(ctx, ref, name)
	})
}

// UpdateOptions says what UpdateContainer changes. The zero value changes nothing.
type UpdateOptions struct {
	Resources Resources      // each field that is not zero replaces the limit
	Restart   *RestartPolicy // replaces the policy; nil leaves it
}

// UpdateContainer changes limits and the restart policy of a container, running or not, and returns its record. Limits
// that do not fit those that stay are ErrInvalid, those that the guest's kernel cannot set ErrUnsupported.
func (r *Runtime) UpdateContainer(ctx context.Context, ref string, opts UpdateOptions) (ContainerInfo, error) {
	return call(ctx, r, "UpdateContainer", ref, func(ctx context.Context) (ContainerInfo, error) {
		var restart *container.RestartPolicy
		if opts.Restart != nil {
			p := opts.Restart.compile()
			restart = &p
		}
		info, err := r.containers.Update(ctx, ref, container.Resources(opts.Resources), restart)
		return containerInfo(info), err
	})
}

// RemoveOptions tunes RemoveContainer. The zero value works.
type RemoveOptions struct {
	Force   bool // kill a container that runs
	Volumes bool // remove its anonymous volumes too, where no other container has them; ContainerSpec.AutoRemove does
}

// RemoveContainer removes a container and what it wrote, its log included. One that has a process, or is about to be
// restarted, is ErrConflict without RemoveOptions.Force.
func (r *Runtime) RemoveContainer(ctx context.Context, ref string, opts RemoveOptions) error {
	return callNone(ctx, r, "RemoveContainer", ref, func(ctx context.Context) error {
		if opts.Volumes {
			return r.containers.RemoveWithVolumes(ctx, ref, opts.Force)
		}
		return r.containers.Remove(ctx, ref, opts.Force)
	})
}

// ListContainersOptions says which containers ListContainers returns: those that fit all fields that are set. The zero
// value lists all, whatever their state.
type ListContainersOptions struct {
	States []ContainerState // one of these
	Labels []string         // all of these: key, or key=value
	Name   string           // part of the name
	Image  string           // as the spec named it, with the tag or without, or the image's id or six and more of its first digits
	Limit  int              // only the newest; 0 is all
}

// ListContainers returns containers, the oldest first. A state that does not exist is ErrInvalid.
//
// Those of other programs that use the data directory are among them, as their records say, unless VMConfig.Ephemeral keeps
// the Runtime to itself. A call that would change such a one or needs its machine is ErrInUse and names the process; when
// that has ended, the call takes the machine, except for the default one: a Runtime that had to have one of its own, since
// another had that, keeps its own, and such a call is ErrConflict until the Runtime is closed and opened again.
func (r *Runtime) ListContainers(ctx context.Context, opts ListContainersOptions) ([]ContainerInfo, error) {
	return call(ctx, r, "ListContainers", "", func(context.Context) ([]ContainerInfo, error) {
		f := container.Filter{Labels: opts.Labels, Name: opts.Name, Image: opts.Image, Limit: opts.Limit}
		for _, s := range opts.States {
			f.States = append(f.States, container.State(s))
		}
		infos, err := r.containers.List(f)
		out := make([]ContainerInfo, len(infos))
		for i, info := range infos {
			out[i] = containerInfo(info)
		}
		return out, err
	})
}

// InspectContainer returns the record of one container, those of other programs included, as ListContainers does.
func (r *Runtime) InspectContainer(ctx context.Context, ref string) (ContainerInfo, error) {
	return call(ctx, r, "InspectContainer", ref, func(context.Context) (ContainerInfo, error) {
		info, err := r.containers.Inspect(ref)
		return containerInfo(info), err
	})
}

// guest is the machine as the containers see it.
type guest struct{ *machine.Machine }

// Persistent implements container.Machine.
func (g guest) Persistent() bool { return g.HasDisk() }

var _ container.Machine = guest{}

// Port implements container.Ported.
func (g guest) Port() *network.Port {
	p, _ := g.NIC().(*network.Port)
	return p
}

// Agent implements container.Machine.
func (g guest) Agent() container.Agent { return g.Machine.Agent() }

// AttachLayers implements container.Machine.
func (g guest) AttachLayers(ctx context.Context, disks []image.LayerDisk) ([]api.Layer, error) {
	layers, attach := make([]api.Layer, len(disks)), make([]vm.Disk, len(disks))
	for i, d := range disks {
		attach[i] = vm.Disk{ID: d.Serial, Path: d.Path, ReadOnly: true}
	}
	if err := g.AttachDisks(ctx, attach...); err != nil {
		return nil, err
	}
	for i, d := range disks {
		layers[i] = api.Layer{Serial: g.Serial(d.Serial)}
	}
	return layers, nil
}

var _ container.Agent = (*agent.Client)(nil)
