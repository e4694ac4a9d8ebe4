package lifecycle

import (
	"slices"
	"time"
)

// State is where a supervised target stands.
type State int

// The states.
const (
	Stopped  State = iota // nothing runs; the first Acquire starts
	Starting              // a start is in flight
	Ready                 // the target runs
	Stopping              // the target is being shut down
	Crashed               // the target ended by itself with an error; see Transition.RetryIn
	Failed                // a start returned an error; see Transition.RetryIn
	Closed                // the supervisor is closed, for good
)

// String returns the state's name in lower case.
func (s State) String() string {
	names := [...]string{"stopped", "starting", "ready", "stopping", "crashed", "failed", "closed"}
	if s < 0 || int(s) >= len(names) {
		return "unknown"
	}
	return names[s]
}

// next holds every transition that is possible. Nothing changes it.
var next = map[State][]State{
	Stopped:  {Starting, Closed},
	Starting: {Ready, Failed, Stopping},
	Ready:    {Stopping, Crashed},
	Stopping: {Stopped, Closed},
	Crashed:  {Starting, Stopping, Stopped, Closed},
	Failed:   {Starting, Stopped, Closed},
	Closed:   {},
}

// CanFollow tells whether a supervisor goes from s to to in one step.
func (s State) CanFollow(to State) bool { return slices.Contains(next[s], to) }

// Transition is one step of a supervisor from state to state.
type Transition struct {
	From State
	To   State
	// Err is why: the error of the start with Failed, that of the target with Crashed, and that of its shutdown with
	// Stopped and Closed. It is nil where there was none.
	Err error
	// RetryIn is, with Crashed and Failed, the time after which the recovery policy starts anew; 0 where it does not. After
	// a crash it begins when what is left of the target has been released.
	RetryIn time.Duration
}
