package api

import "time"

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

	NoNewPrivileges bool     `json:"no_new_privileges,omitempty"`
	OOMScoreAdj     int      `json:"oom_score_adj,omitempty"` // -1000 to 1000
	Rlimits         []Rlimit `json:"rlimits,omitempty"`       // those not named are the agent's
	Groups          []string `json:"groups,omitempty"`        // more groups, names or numbers

	// Seccomp is a filter program for the guest's architecture as the kernel takes it: struct sock_filter, 8 bytes each,
	// little endian. The host compiles it. Empty is no filter.
	Seccomp []byte `json:"seccomp,omitempty"`
}

// Rlimit is a resource limit of a process.
type Rlimit struct {
	Type string `json:"type"` // as in the OCI runtime spec: "RLIMIT_NOFILE"
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Resources are limits on a container's cgroup. A zero field sets no limit, and in an UpdateRequest changes nothing.
type Resources struct {
	Memory     int64  `json:"memory,omitempty"`      // bytes; -1 is none
	MemorySwap int64  `json:"memory_swap,omitempty"` // bytes of memory and swap together, as Docker has it; -1 is none
	CPUQuota   int64  `json:"cpu_quota,omitempty"`   // microseconds in each period; -1 is none
	CPUPeriod  uint64 `json:"cpu_period,omitempty"`  // microseconds; 0 is 100,000
	CPUShares  uint64 `json:"cpu_shares,omitempty"`  // 2 to 262,144; the agent turns them into cpu.weight
	CPUSet     string `json:"cpuset,omitempty"`      // "0-2,4"
	PIDs       int64  `json:"pids,omitempty"`        // -1 is none
	IOWeight   uint16 `json:"io_weight,omitempty"`   // 10 to 1000
}

// Tmpfs is a file system in memory, mounted into a container.
type Tmpfs struct {
	Path string `json:"path"`           // absolute, in the container; made where it does not exist
	Size int64  `json:"size,omitempty"` // bytes; 0 is half of the machine's memory
	Mode uint32 `json:"mode,omitempty"` // permission bits; 0 is 01777
	Exec bool   `json:"exec,omitempty"` // programs on it may be executed
}

// Host is a line of /etc/hosts.
type Host struct {
	Name string `json:"name"`
	IP   string `json:"ip"`
}

// LogLimits bounds the log of a container.
type LogLimits struct {
	MaxSize  int64 `json:"max_size,omitempty"`  // bytes of one file; 0 is 10 MiB
	MaxFiles int   `json:"max_files,omitempty"` // the newest included; 0 is 3
}

// RehearsalCommand is the name under which the agent's executable does, as the command of a container, what programs do first,
// and exits with 0 when its input has ended. It is for machines that are to be saved.
const RehearsalCommand = "arcbox-rehearsal"

// CreateRequest describes a container. It carries everything: creating takes one request and one reply. What a container
// of the same ID wrote, where it was removed with Keep or the machine was stopped, is there again.
type CreateRequest struct {
	ID       string  `json:"id"`
	Layers   []Layer `json:"layers"` // lowest first
	Process  Process `json:"process"`
	Hostname string  `json:"hostname,omitempty"` // "" is the first 12 characters of ID

	Resources  Resources         `json:"resources,omitzero"`
	ReadOnly   bool              `json:"read_only,omitempty"` // the root cannot be written; mounts on it can
	Tmpfs      []Tmpfs           `json:"tmpfs,omitempty"`     // mounted in the order of Mount
	Mounts     []Mount           `json:"mounts,omitempty"`
	ShmSize    int64             `json:"shm_size,omitempty"` // bytes of /dev/shm; 0 is 64 MiB
	Sysctls    map[string]string `json:"sysctls,omitempty"`  // of the container's own namespaces only
	ExtraHosts []Host            `json:"extra_hosts,omitempty"`
	Init       bool              `json:"init,omitempty"`       // PID 1 is the agent's: it reaps, and forwards signals to the process
	Privileged bool              `json:"privileged,omitempty"` // all capabilities and devices, nothing masked or read-only, no seccomp
	Log        LogLimits         `json:"log,omitzero"`
	Network    Network           `json:"network,omitzero"`
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

// RemoveRequest removes a container and what it wrote, logs included. A running one is ErrConflict unless Force is set.
// What one wrote that is known by its data only, from before the machine was stopped, is removed too.
type RemoveRequest struct {
	ID    string `json:"id"`
	Force bool   `json:"force,omitempty"`
	Keep  bool   `json:"keep,omitempty"` // keep what it wrote and its logs for a later Create of the same ID
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
