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
	Poweroff   = Method[PoweroffRequest, PoweroffReply]{"poweroff"}
	Create     = Method[CreateRequest, CreateReply]{"create"}
	Start      = Method[StartRequest, StartReply]{"start"}
	Wait       = Method[WaitRequest, WaitReply]{"wait"}
	Kill       = Method[KillRequest, KillReply]{"kill"}
	Remove     = Method[RemoveRequest, RemoveReply]{"remove"}
	Attach     = StreamMethod[AttachRequest]{"attach"}
	Events     = StreamMethod[EventsRequest]{"events"}
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

// PoweroffRequest asks for a clean power-off: containers are killed, file systems are synced and unmounted.
type PoweroffRequest struct{}

// PoweroffReply is sent before the power goes.
type PoweroffReply struct{}

// Layer is a read-only disk that holds one layer of an image as an ext4 file system.
type Layer struct {
	Serial string `json:"serial"` // of the disk, at most 20 bytes
}

// Size is the size of a terminal in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Process is what runs in a container.
type Process struct {
	Args         []string `json:"args"`
	Env          []string `json:"env,omitempty"`
	Cwd          string   `json:"cwd,omitempty"`  // "" is /; made where it does not exist
	User         string   `json:"user,omitempty"` // user[:group], names or numbers; names are looked up in the container's own files
	TTY          bool     `json:"tty,omitempty"`
	Size         Size     `json:"size,omitzero"`   // of the terminal at the start
	Stdin        bool     `json:"stdin,omitempty"` // false: stdin is /dev/null
	Capabilities []string `json:"capabilities"`    // CAP_ names of the bounding set, and of the permitted and effective one of root; nil is the default, empty is none
}

// CreateRequest describes a container. It carries everything: creating takes one request and one reply.
type CreateRequest struct {
	ID       string  `json:"id"`
	Layers   []Layer `json:"layers"` // lowest first
	Process  Process `json:"process"`
	Hostname string  `json:"hostname,omitempty"` // "" is the first 12 characters of ID
}

// CreateReply is empty.
type CreateReply struct{}

// StartRequest starts the process of a created container.
type StartRequest struct {
	ID string `json:"id"`
}

// StartReply is sent when the process has been executed. A command that does not exist or cannot be executed is an
// error instead (no_command, no_executable), and the container has exited with 127 or 126.
type StartReply struct {
	PID int `json:"pid"` // in the guest's own PID namespace
}

// WaitRequest waits for the end of a container's process, at once where it has ended.
type WaitRequest struct {
	ID string `json:"id"`
}

// Exit is how a process ended.
type Exit struct {
	Code      int    `json:"code"`             // 128 plus the signal's number where a signal ended it
	Signal    string `json:"signal,omitempty"` // name without SIG
	OOMKilled bool   `json:"oom_killed,omitempty"`
}

// WaitReply tells how the process ended.
type WaitReply struct {
	Exit Exit      `json:"exit"`
	At   time.Time `json:"at"`
}

// KillRequest sends a signal to a container's process.
type KillRequest struct {
	ID     string `json:"id"`
	Signal string `json:"signal"` // name with or without SIG, or a number
}

// KillReply is empty.
type KillReply struct{}

// RemoveRequest removes a container and what it wrote. A running one is ErrConflict unless Force is set.
type RemoveRequest struct {
	ID    string `json:"id"`
	Force bool   `json:"force,omitempty"`
}

// RemoveReply is empty.
type RemoveReply struct{}

// AttachRequest connects a stream to the stdio of a container, before its start or after. Frames from the host:
// FrameStdin, FrameResize, FrameSignal. Frames from the guest: FrameStdout, FrameStderr, and FrameExit as the last.
// Closing the stream detaches; the process goes on.
type AttachRequest struct {
	ID    string `json:"id"`
	Stdin bool   `json:"stdin,omitempty"` // this stream feeds stdin
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
	EventLost EventKind = "lost" // stands in place of events that a slow subscriber did not get
)
