package api

import (
	"io/fs"
	"time"
)

// ConfigureRequest gives the guest what is its own: it comes once, right after the first Ping. The reply does not wait
// for the disk; what needs it does.
type ConfigureRequest struct {
	DataDisk string    `json:"data_disk,omitempty"` // serial of the machine's data disk or its bay, an ext4, which may come later: what needs it waits; "" keeps what containers write in memory
	Hostname string    `json:"hostname,omitempty"`  // of the machine
	Time     time.Time `json:"time,omitzero"`       // of the host; the guest's clock is set where it differs by over a second

	// DiskLater mounts the data disk when something needs it, and not as soon as it is there.
	DiskLater bool `json:"disk_later,omitempty"`

	// Sweep deletes from the data disk what containers wrote whose ids are not in Known, and the volumes that are not in
	// Volumes: their records are gone.
	Sweep   bool     `json:"sweep,omitempty"`
	Known   []string `json:"known,omitempty"`
	Volumes []string `json:"volumes,omitempty"`
}

// ConfigureReply is empty.
type ConfigureReply struct{}

// PauseRequest freezes the processes of a running container, or thaws them. What is so already is ErrConflict.
type PauseRequest struct {
	ID     string `json:"id"`
	Resume bool   `json:"resume,omitempty"`
}

// PauseReply is empty.
type PauseReply struct{}

// UpdateRequest changes limits of a container, running or not.
type UpdateRequest struct {
	ID        string    `json:"id"`
	Resources Resources `json:"resources"`
}

// UpdateReply is empty.
type UpdateReply struct{}

// StatsRequest asks what a running container uses.
type StatsRequest struct {
	ID string `json:"id"`
}

// StatsReply is what a container used at one moment. Counters run from the container's start.
type StatsReply struct {
	At          time.Time     `json:"at"`
	CPU         time.Duration `json:"cpu"` // user and system
	CPUUser     time.Duration `json:"cpu_user"`
	CPUSystem   time.Duration `json:"cpu_system"`
	Throttled   time.Duration `json:"throttled"`
	SystemCPU   time.Duration `json:"system_cpu"`   // of the whole machine, all processors, idle included: the base of a percentage
	CPUs        int           `json:"cpus"`         // of the machine
	Memory      int64         `json:"memory"`       // bytes, cache included
	MemoryCache int64         `json:"memory_cache"` // bytes of it that the kernel can take back: inactive file pages
	MemoryLimit int64         `json:"memory_limit"` // bytes: the container's, or the machine's memory
	MemoryPeak  int64         `json:"memory_peak"`  // bytes; 0 where the kernel does not tell
	OOMKills    uint64        `json:"oom_kills"`
	PIDs        int64         `json:"pids"`
	PIDsLimit   int64         `json:"pids_limit"` // 0 is none
	ReadBytes   uint64        `json:"read_bytes"`
	WriteBytes  uint64        `json:"write_bytes"`
	ReadOps     uint64        `json:"read_ops"`
	WriteOps    uint64        `json:"write_ops"`
	Networks    []NetStats    `json:"networks,omitempty"` // without the loopback interface
}

// NetStats are the counters of one network interface, as the container sees them.
type NetStats struct {
	Name      string `json:"name"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

// TopRequest asks for the processes of a running container.
type TopRequest struct {
	ID string `json:"id"`
}

// TopReply lists them by PID; at most 4096.
type TopReply struct {
	Processes []ProcessInfo `json:"processes"`
}

// ProcessInfo is one process.
type ProcessInfo struct {
	PID     int           `json:"pid"`  // in the container
	PPID    int           `json:"ppid"` // in the container; 0 where the parent is outside
	UID     uint32        `json:"uid"`
	State   string        `json:"state"` // one letter, as ps has it
	CPU     time.Duration `json:"cpu"`
	RSS     int64         `json:"rss"` // bytes
	Started time.Time     `json:"started"`
	TTY     string        `json:"tty,omitempty"`
	Command []string      `json:"command"` // argv, cut to 4 KiB; the name in brackets where there is none
}

// ExecRequest runs another process in a running container or, without an ID, in the machine itself: as root with all
// capabilities, in the machine's namespaces but for that of mounts, below a root made of Layers that has the machine's own
// at /host. What such a process leaves behind ends with it. The stream is accepted when the command was executed; one that
// does not exist or cannot be executed is an error instead (no_command, no_executable). Frames are those of Attach, with
// Stdin of Process. Closing the stream kills the process, unless Detach is set. A paused container is ErrConflict.
type ExecRequest struct {
	ID         string  `json:"id"`               // of the container; "" is the machine
	Layers     []Layer `json:"layers,omitempty"` // in the machine; lowest first
	ExecID     string  `json:"exec_id"`          // of the process, unique in the guest, in the form of a container's
	Process    Process `json:"process"`
	Privileged bool    `json:"privileged,omitempty"`
	Detach     bool    `json:"detach,omitempty"` // the stream is closed when the command was executed, the output dropped
}

// ExecInspectRequest asks for a process that Exec started. It is known until its container is removed, the newest 1024 of
// each container.
type ExecInspectRequest struct {
	ExecID string `json:"exec_id"`
	Signal string `json:"signal,omitempty"` // sent to it first, where it runs; a name with or without SIG, or a number
	Wait   bool   `json:"wait,omitempty"`   // reply when it has ended
	Size   Size   `json:"size,omitzero"`    // of its terminal, set first
}

// ExecInspectReply is how the process stands.
type ExecInspectReply struct {
	ID      string `json:"id"` // of the container; "" is the machine
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	Exit    Exit   `json:"exit"`
}

// LogsRequest reads what a container wrote. Frames: FrameLog, then FrameExit as the last, whose payload is the zero Exit.
// It works for containers of which there is only data, from before the machine was stopped.
type LogsRequest struct {
	ID     string    `json:"id"`
	Stdout bool      `json:"stdout,omitempty"`
	Stderr bool      `json:"stderr,omitempty"`
	Follow bool      `json:"follow,omitempty"` // go on until the container has exited
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"`
	Tail   int       `json:"tail,omitempty"` // only the last lines; 0 is all, -1 is none
}

// LogRecord is the payload of a FrameLog, as JSON: one line, or a piece of one that is longer than 16 KiB.
type LogRecord struct {
	At     time.Time `json:"at"`
	Stderr bool      `json:"stderr,omitempty"`
	Line   []byte    `json:"line"`           // with its newline where it has one
	Lost   uint64    `json:"lost,omitempty"` // bytes that could not be kept at this place; Line is empty then
}

// StatRequest asks for a file of a container.
type StatRequest struct {
	ID   string `json:"id"`
	Path string `json:"path"` // in the container
}

// StatReply is a file of a container. A link at the end of the path is not followed.
type StatReply struct {
	Name    string      `json:"name"`
	Size    int64       `json:"size"`
	Mode    fs.FileMode `json:"mode"`
	ModTime time.Time   `json:"mod_time"`
	Link    string      `json:"link,omitempty"` // target, resolved in the container as far as it exists
}

// CopyFromRequest reads a file or directory as a tar archive, as docker cp does. Frames: FrameStdout with the archive,
// then FrameExit. A path that is not there is ErrNotFound.
type CopyFromRequest struct {
	ID   string `json:"id"`
	Path string `json:"path"`
}

// CopyToRequest unpacks a tar archive into a directory of the container. Frames from the host: FrameStdin with the
// archive, the end an empty one; from the guest: FrameExit when all is written. Nothing is written outside the
// container's root, whatever links the archive or the container have. A path that is no directory is ErrInvalid.
type CopyToRequest struct {
	ID          string `json:"id"`
	Path        string `json:"path"`
	NoOverwrite bool   `json:"no_overwrite,omitempty"` // a directory is not replaced by a file, nor a file by a directory
	KeepOwner   bool   `json:"keep_owner,omitempty"`   // owners are those of the archive, not root
}

// ExportRequest reads a whole root as a tar archive. Frames: FrameStdout with the archive, then FrameExit.
type ExportRequest struct {
	ID    string `json:"id"`
	Layer bool   `json:"layer,omitempty"` // only what differs from the image, as an OCI layer with whiteouts
}

// DiffRequest asks what a container changed in its root.
type DiffRequest struct {
	ID    string `json:"id"`
	After string `json:"after,omitempty"` // only changes that come after this path, the last of the reply before
}

// DiffReply lists the changes by path, a directory before what is in it: at most 100,000, and what fits into a frame.
type DiffReply struct {
	Changes []Change `json:"changes"`
	More    bool     `json:"more,omitempty"` // there were more
}

// Change is a path that differs from the image.
type Change struct {
	Path string     `json:"path"` // absolute
	Kind ChangeKind `json:"kind"`
}

// ChangeKind says how a path differs.
type ChangeKind string

// The kinds of changes.
const (
	ChangeModified ChangeKind = "modified"
	ChangeAdded    ChangeKind = "added"
	ChangeDeleted  ChangeKind = "deleted"
)
