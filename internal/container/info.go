package container

import (
	"maps"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// State is where a container is in its life.
type State string

// The states. A container is made in StateCreated; only the transitions of the table below happen.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
)

// transitions lists, for each state, the states that may follow.
var transitions = map[State][]State{
	StateCreated: {StateRunning, StateExited}, // exited: the command could not be executed, or the machine ended
	StateRunning: {StateExited},
	StateExited:  {},
}

// unknownExitCode is the code of a container whose end nobody saw, as Docker has it.
const unknownExitCode = 255

// Info is the record of a container as it is at one moment.
type Info struct {
	ID         string
	Name       string
	Image      string // as the caller named it
	ImageID    string // digest of the image's config
	Machine    string // name of the machine it runs in
	State      State
	Created    time.Time
	Started    time.Time // zero before the start
	Finished   time.Time // zero before the end
	PID        int       // in the guest; 0 when not running
	Exit       api.Exit  // of an exited container
	Reason     string    // why it exited, where that was not by itself
	Args       []string
	Labels     map[string]string
	StopSignal string
	TTY        bool
	Stdin      bool
	AutoRemove bool
}

func (i Info) clone() Info {
	i.Args = slices.Clone(i.Args)
	i.Labels = maps.Clone(i.Labels)
	return i
}

// to moves the record to another state and tells whether the table has that transition. Where it has not, as when the
// guest reports an exit twice, nothing changes.
func (i *Info) to(next State) bool {
	if !slices.Contains(transitions[i.State], next) {
		return false
	}
	i.State = next
	return true
}
