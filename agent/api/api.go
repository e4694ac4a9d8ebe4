// Package api is the wire API between the host and the agent in the guest: frames, calls, and the table of methods that
// both sides use.
//
// Each call has a stream of its own. The caller sends one FrameRequest and gets one FrameReply or FrameError. Closing
// the stream cancels the call. Nothing depends on half-close, which not every transport has.
package api

import "time"

// Version is the version of the protocol. Host and agent must have the same one.
const Version = 1

// Port is the port on which the agent accepts streams, whatever the transport.
const Port uint32 = 1024

// The methods.
var (
	Ping       = Method[PingRequest, PingReply]{"ping"}
	VsockCheck = Method[VsockCheckRequest, VsockCheckReply]{"vsock-check"}
	Settle     = Method[SettleRequest, SettleReply]{"settle"}
	LeaveDisk  = Method[LeaveDiskRequest, LeaveDiskReply]{"leave-disk"}
	Wake       = Method[WakeRequest, WakeReply]{"wake"}
	Poweroff   = Method[PoweroffRequest, PoweroffReply]{"poweroff"}
	Census     = Method[CensusRequest, CensusReply]{"census"}
	Create     = Method[CreateRequest, CreateReply]{"create"}
	Start      = Method[StartRequest, StartReply]{"start"}
	Wait       = Method[WaitRequest, WaitReply]{"wait"}
	Kill       = Method[KillRequest, KillReply]{"kill"}
	Remove     = Method[RemoveRequest, RemoveReply]{"remove"}
	Attach     = StreamMethod[AttachRequest]{"attach"}
	Events     = StreamMethod[EventsRequest]{"events"}

	Configure   = Method[ConfigureRequest, ConfigureReply]{"configure"}
	Pause       = Method[PauseRequest, PauseReply]{"pause"}
	Update      = Method[UpdateRequest, UpdateReply]{"update"}
	Stats       = Method[StatsRequest, StatsReply]{"stats"}
	Top         = Method[TopRequest, TopReply]{"top"}
	ExecInspect = Method[ExecInspectRequest, ExecInspectReply]{"exec-inspect"}
	Stat        = Method[StatRequest, StatReply]{"stat"}
	Diff        = Method[DiffRequest, DiffReply]{"diff"}
	Exec        = StreamMethod[ExecRequest]{"exec"}
	Logs        = StreamMethod[LogsRequest]{"logs"}
	CopyFrom    = StreamMethod[CopyFromRequest]{"copy-from"}
	CopyTo      = StreamMethod[CopyToRequest]{"copy-to"}
	Export      = StreamMethod[ExportRequest]{"export"}
)

// PingRequest asks whether the agent answers.
type PingRequest struct{}

// PingReply tells what the agent is.
type PingReply struct {
	Version int           `json:"version"`          // of the protocol
	Kernel  string        `json:"kernel"`           // release of the guest's kernel
	Uptime  time.Duration `json:"uptime"`           // since the kernel started
	Vsock   bool          `json:"vsock"`            // the agent listens on AF_VSOCK
	Phases  []Phase       `json:"phases,omitempty"` // what the agent did at boot, in order
}

// Phase is one step of the agent's start.
type Phase struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // since the kernel started, when the step ended
}

// VsockCheckRequest asks the agent to call itself over AF_VSOCK loopback.
type VsockCheckRequest struct{}

// VsockCheckReply is what the agent heard from itself: the reply of a Ping that went over AF_VSOCK.
type VsockCheckReply struct {
	CID  uint32    `json:"cid"`
	Ping PingReply `json:"ping"`
}

// SettleRequest waits until everything that the guest does at its boot is done, and it has found its disks.
type SettleRequest struct {
	Disks []string `json:"disks,omitempty"` // serials of disks that the guest must have found
	// Rest waits until the guest is at rest too, for that some seconds at most. A machine is saved as a template then.
	Rest bool `json:"rest,omitempty"`
}

// SettleReply is empty.
type SettleReply struct{}

// LeaveDiskRequest has the guest let its data disk go, which it may be configured with again. While there are containers it is
// ErrConflict. A guest without a data disk does nothing.
type LeaveDiskRequest struct{}

// LeaveDiskReply is empty.
type LeaveDiskReply struct{}

// WakeRequest gives a machine that goes on from a template what must not be the same in all that do.
type WakeRequest struct {
	Entropy []byte    `json:"entropy"` // 32 to 512 random bytes, from which the kernel's random number generator starts anew
	Time    time.Time `json:"time"`    // of the host, to which the guest's clock is set
}

// WakeReply is empty.
type WakeReply struct{}

// PoweroffRequest asks for a clean power-off: containers are killed, file systems are synced and unmounted.
type PoweroffRequest struct{}

// PoweroffReply is sent before the power goes.
type PoweroffReply struct{}

// CensusRequest asks for all that there is in the guest: what a container that was removed has left would be in it.
type CensusRequest struct{}

// CensusReply names what there is, sorted, at most 4096 of each kind.
type CensusReply struct {
	Mounts     []string `json:"mounts,omitempty"`    // mount points that the agent sees
	Cgroups    []string `json:"cgroups,omitempty"`   // directories
	Processes  []string `json:"processes,omitempty"` // "number name", but for the kernel's own
	Disks      []string `json:"disks,omitempty"`     // block devices
	Data       []string `json:"data,omitempty"`      // places of containers and volumes, and what is being deleted
	Files      []string `json:"files,omitempty"`     // that the agent has open: their paths or kinds
	Goroutines int      `json:"goroutines"`          // of the agent
}

// EventsRequest subscribes to what happens in the guest.
type EventsRequest struct{}

// Event is something that happened in the guest.
type Event struct {
	Kind EventKind `json:"kind"`
	ID   string    `json:"id"` // of the container
	Exit Exit      `json:"exit,omitzero"`
	At   time.Time `json:"at"`

	Dropped int `json:"dropped,omitempty"` // of EventLost: how many events the subscriber did not get
}

// EventKind names an event.
type EventKind string

// The events of the guest.
const (
	EventExit EventKind = "exit" // a container's process has ended and its output has been read to the end
	EventOOM  EventKind = "oom"  // the kernel killed a process of a container for lack of memory
	EventLost EventKind = "lost" // stands in place of events that a slow subscriber did not get
)
