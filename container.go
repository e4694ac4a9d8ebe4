package arcbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/machine"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// ContainerState is where a container is in its life.
type ContainerState string

// The states of a container.
const (
	ContainerCreated ContainerState = ContainerState(container.StateCreated) // made, not started
	ContainerRunning ContainerState = ContainerState(container.StateRunning) // its process runs
	ContainerExited  ContainerState = ContainerState(container.StateExited)  // its process has ended, or never could run
)

// Exit is how a process ended. It is a result: a Code other than 0 is not an error.
type Exit struct {
	Code      int    // 0 to 255; 128 and the signal's number where a signal ended it; 127 and 126 where the command could not run
	Signal    string // the signal's name without SIG, "" where none ended it
	OOMKilled bool   // the guest's kernel killed it, or a child of it, for lack of memory
}

// ContainerInfo is the record of a container as it was at one moment.
type ContainerInfo struct {
	ID         string // 64 hexadecimal digits
	Name       string
	Image      string // as the spec named it
	ImageID    string // digest of the image's config
	Machine    string // name of the machine it runs in
	State      ContainerState
	Created    time.Time
	Started    time.Time         // zero before the start
	Finished   time.Time         // zero before the end
	PID        int               // of the process in the machine; 0 when none runs
	Exit       Exit              // of an exited container
	Reason     string            // why it exited, where that was not by itself
	Args       []string          // entrypoint and command together
	Labels     map[string]string // of the image and the spec
	StopSignal string
	TTY        bool
	Stdin      bool
	AutoRemove bool
}

func containerInfo(i container.Info) ContainerInfo {
	return ContainerInfo{
		ID: i.ID, Name: i.Name, Image: i.Image, ImageID: i.ImageID, Machine: i.Machine, State: ContainerState(i.State),
		Created: i.Created, Started: i.Started, Finished: i.Finished, PID: i.PID, Exit: Exit(i.Exit), Reason: i.Reason,
		Args: i.Args, Labels: i.Labels, StopSignal: i.StopSignal, TTY: i.TTY, Stdin: i.Stdin, AutoRemove: i.AutoRemove,
	}
}

// PullPolicy says when a call fetches the image it needs.
type PullPolicy string

// The pull policies.
const (
	PullMissing PullPolicy = ""       // where the store does not have it
	PullAlways  PullPolicy = "always" // every time; what has not changed is not fetched again
	PullNever   PullPolicy = "never"  // a missing image is ErrNotFound
)

// CreateOptions tunes CreateContainer. The zero value works.
type CreateOptions struct {
	Pull         PullPolicy         // the zero value pulls what is missing
	PullProgress func(PullProgress) // as PullOptions.Progress
}

// CreateContainer makes a container and starts the machine where it does not run. It does not start the container.
//
// A spec that cannot work is ErrInvalid, a name that is taken ErrExists, a missing image ErrNotFound; all before
// anything is made.
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
	if err := s.Validate(); err != nil {
		return container.Info{}, err
	}
	switch opts.Pull {
	case PullNever:
	case PullAlways:
		if _, err := r.pull(ctx, spec.Image, PullOptions{Progress: opts.PullProgress}); err != nil {
			return container.Info{}, err
		}
	case PullMissing:
		if err := r.pullMissing(ctx, spec.Image, opts); err != nil {
			return container.Info{}, err
		}
	default:
		return container.Info{}, fmt.Errorf("%w pull policy %q: use always, never, or none", ErrInvalid, opts.Pull)
	}
	return r.containers.Create(ctx, s)
}

func (r *Runtime) pullMissing(ctx context.Context, ref string, opts CreateOptions) error {
	_, err := r.images.Get(ctx, ref)
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	_, err = r.pull(ctx, ref, PullOptions{Progress: opts.PullProgress})
	return err
}

// StartContainer starts the process of a created container and returns when it has been executed.
//
// A command that does not exist is ErrCommandNotFound, one that cannot be executed ErrCommandNotExecutable; the
// container has exited then, with 127 or 126. A container that was started before is ErrConflict.
func (r *Runtime) StartContainer(ctx context.Context, ref string) error {
	return callNone(ctx, r, "StartContainer", ref, func(ctx context.Context) error { return r.containers.Start(ctx, ref) })
}

// WaitContainer waits for the end of a container's process, at once where it has ended, and returns how it ended. Any
// number may wait. Where the machine ended under the container the error is ErrUnavailable.
func (r *Runtime) WaitContainer(ctx context.Context, ref string) (Exit, error) {
	return call(ctx, r, "WaitContainer", ref, func(ctx context.Context) (Exit, error) {
		exit, err := r.containers.Wait(ctx, ref)
		return Exit(exit), err
	})
}

// KillContainer sends a signal to the process of a running container: a name such as "TERM" or "SIGTERM", or a number;
// "" is KILL. A container that does not run is ErrConflict, an unknown signal ErrInvalid.
func (r *Runtime) KillContainer(ctx context.Context, ref, signal string) error {
	return callNone(ctx, r, "KillContainer", ref, func(ctx context.Context) error {
		return r.containers.Kill(ctx, ref, signal)
	})
}

// RemoveOptions tunes RemoveContainer. The zero value works.
type RemoveOptions struct {
	Force bool // kill a container that runs
}

// RemoveContainer removes a container and what it wrote. One that runs is ErrConflict without RemoveOptions.Force.
func (r *Runtime) RemoveContainer(ctx context.Context, ref string, opts RemoveOptions) error {
	return callNone(ctx, r, "RemoveContainer", ref, func(ctx context.Context) error {
		return r.containers.Remove(ctx, ref, opts.Force)
	})
}

// ListContainersOptions tunes ListContainers. The zero value lists all, whatever their state.
type ListContainersOptions struct{}

// ListContainers returns the containers of this Runtime, the oldest first.
func (r *Runtime) ListContainers(ctx context.Context, opts ListContainersOptions) ([]ContainerInfo, error) {
	return call(ctx, r, "ListContainers", "", func(context.Context) ([]ContainerInfo, error) {
		infos, err := r.containers.List()
		out := make([]ContainerInfo, len(infos))
		for i, info := range infos {
			out[i] = containerInfo(info)
		}
		return out, err
	})
}

// InspectContainer returns the record of one container.
func (r *Runtime) InspectContainer(ctx context.Context, ref string) (ContainerInfo, error) {
	return call(ctx, r, "InspectContainer", ref, func(context.Context) (ContainerInfo, error) {
		info, err := r.containers.Inspect(ref)
		return containerInfo(info), err
	})
}

// guest is the machine as the containers see it.
type guest struct{ *machine.Machine }

var _ container.Machine = guest{}

// Agent implements container.Machine.
func (g guest) Agent() container.Agent { return g.Machine.Agent() }

// AttachLayers implements container.Machine.
func (g guest) AttachLayers(ctx context.Context, disks []image.LayerDisk) ([]api.Layer, error) {
	layers, attach := make([]api.Layer, len(disks)), make([]vm.Disk, len(disks))
	for i, d := range disks {
		attach[i] = vm.Disk{ID: d.Serial, Path: d.Path, ReadOnly: true}
		layers[i] = api.Layer{Serial: d.Serial}
	}
	return layers, g.AttachDisks(ctx, attach...)
}

var _ container.Agent = (*agent.Client)(nil)
