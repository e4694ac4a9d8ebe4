package container

import (
	"maps"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// State is where a container is in its life.
type State string

// The states. A container is made in StateCreated; only the transitions of the table below happen.
const (
	StateCreated    State = "created"
	StateRunning    State = "running"
	StatePaused     State = "paused"
	StateRestarting State = "restarting" // its process has ended and is started again soon, by its restart policy
	StateExited     State = "exited"
	StateRemoving   State = "removing"
	StateDead       State = "dead" // its record is damaged; it can only be removed
)

// transitions lists, for each state, the states that may follow.
var transitions = map[State][]State{
	StateCreated:    {StateRunning, StateExited, StateRemoving}, // exited: the command could not be executed, or nobody saw what became of it
	StateRunning:    {StatePaused, StateRestarting, StateExited, StateRemoving},
	StatePaused:     {StateRunning, StateRestarting, StateExited, StateRemoving},
	StateRestarting: {StateRunning, StateRestarting, StateExited, StateRemoving},       // restarting: the machine could not be started
	StateExited:     {StateRunning, StateExited, StateRemoving},                        // exited: started again, and could not be executed
	StateRemoving:   {StateCreated, StateRunning, StatePaused, StateExited, StateDead}, // it could not be removed
	StateDead:       {StateRemoving},
}

// unknownExitCode is the code of a container whose end nobody saw, as Docker has it.
const unknownExitCode = 255

// Info is the record of a container as it is at one moment.
type Info struct {
	ID           string              `json:"id"`
	Name         string              `json:"name"`
	Image        string              `json:"image"`    // as the caller named it
	ImageID      string              `json:"image_id"` // digest of the image's config
	Machine      string              `json:"machine"`  // name of the machine it belongs to
	State        State               `json:"state"`
	Created      time.Time           `json:"created"`
	Started      time.Time           `json:"started,omitzero"`  // the last time
	Finished     time.Time           `json:"finished,omitzero"` // the last time
	PID          int                 `json:"-"`                 // in the guest; 0 when not running
	Exit         api.Exit            `json:"exit,omitzero"`     // of the last run
	Reason       string              `json:"reason,omitempty"`  // why it exited, where that was not by itself
	RestartCount int                 `json:"restart_count,omitempty"`
	Args         []string            `json:"args"`
	Env          []string            `json:"env,omitempty"`
	WorkingDir   string              `json:"working_dir,omitempty"`
	User         string              `json:"user,omitempty"`
	Labels       map[string]string   `json:"labels,omitempty"`
	StopSignal   string              `json:"stop_signal"`
	Check        *HealthCheck        `json:"check,omitempty"` // of image and spec together
	Health       *Health             `json:"-"`               // of a container with a check, since its last start
	Mounts       []MountPoint        `json:"mounts,omitempty"`
	Endpoints    []network.Endpoint  `json:"endpoints,omitempty"`
	Ports        []network.Published `json:"-"` // while it runs
	Spec         Spec                `json:"spec"`
}

// clone returns a copy that shares nothing that can be written.
func (i Info) clone() Info {
	i.Args = slices.Clone(i.Args)
	i.Env = slices.Clone(i.Env)
	i.Labels = maps.Clone(i.Labels)
	i.Endpoints, i.Ports = slices.Clone(i.Endpoints), slices.Clone(i.Ports)
	i.Check = i.Check.clone()
	i.Health = i.Health.clone()
	i.Mounts = slices.Clone(i.Mounts)
	i.Spec = i.Spec.clone()
	return i
}

func (s Spec) clone() Spec {
	for _, l := range []*[]string{&s.Entrypoint, &s.Args, &s.Env, &s.Groups, &s.ExtraHosts, &s.CapAdd, &s.CapDrop} {
		*l = slices.Clone(*l)
	}
	s.Networks, s.Ports, s.Sockets = slices.Clone(s.Networks), slices.Clone(s.Ports), slices.Clone(s.Sockets)
	for i := range s.Networks {
		s.Networks[i].Aliases = slices.Clone(s.Networks[i].Aliases)
	}
	s.Labels, s.Sysctls = maps.Clone(s.Labels), maps.Clone(s.Sysctls)
	s.Ulimits, s.Tmpfs = slices.Clone(s.Ulimits), slices.Clone(s.Tmpfs)
	s.Mounts = slices.Clone(s.Mounts)
	s.Health = s.Health.clone()
	return s
}

func (h *HealthCheck) clone() *HealthCheck {
	if h == nil {
		return nil
	}
	c := *h
	c.Test = slices.Clone(h.Test)
	return &c
}

// to moves the record to another state and tells whether the table has that transition. Where it has not nothing changes.
func (i *Info) to(next State) bool {
	if !slices.Contains(transitions[i.State], next) {
		return false
	}
	i.State = next
	return true
}

// live tells that a container has a process, or will soon have one again.
func (s State) live() bool { return s == StateRunning || s == StatePaused || s == StateRestarting }
