package engine

import (
	"context"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// Backend makes containers.
type Backend interface {
	// Create makes a container whose process waits for Start. It waits for disks that are not there yet until ctx ends.
	// Where it returns an error, nothing is left. The request was checked by CheckCreate.
	Create(ctx context.Context, req api.CreateRequest) (Sandbox, error)
	// Exec starts a process in the machine itself, as Sandbox.Exec does in a container. Release kills what it has left.
	Exec(ctx context.Context, req api.ExecRequest) (Process, error)
	// LogDir returns the directory of a container's log, which may not be there yet. A container of which nothing is
	// there is ErrNotFound.
	LogDir(ctx context.Context, id string) (string, error)
	// OnOOM makes report be called with the container's ID when the kernel has killed a process of one for lack of memory.
	// It is called once, before Create. report does not block; for a process whose end Wait tells it is called before.
	OnOOM(report func(id string))
	// Forget deletes what a container wrote of which there is no sandbox. Where there is nothing it is ErrNotFound.
	Forget(ctx context.Context, id string) error
}

// Data says what becomes of what a container wrote.
type Data int

// What becomes of it.
const (
	DeleteData Data = iota
	KeepData        // for a later Create of the same ID
	UndoData        // as it was before Create
)

// Sandbox is a container as its backend sees it. Start and Remove are called by one goroutine at a time, the others from
// many.
type Sandbox interface {
	// Stdio returns the agent's ends of the process's stdio. They belong to the caller, who closes them.
	Stdio() Stdio
	// Start lets the process execute its command and returns its process number when it has. An error that wraps
	// ErrNoCommand or ErrNoExecutable is about the command; after any error the process has ended or soon will have.
	Start(ctx context.Context) (pid int, err error)
	// Signal sends a signal, by its Linux number, to a process that was started.
	Signal(sig int) error
	// Exec starts another process in the container, whose first process was started, and returns when it has executed
	// its command. The errors are those of Start; a container whose process has ended is ErrConflict. When ctx ends
	// before, the process is killed. After an error nothing is left. The request was checked.
	Exec(ctx context.Context, req api.ExecRequest) (Process, error)
	// Freeze stops all processes of the container, or lets them go on, and returns when they have. After an error they go
	// on. Signals wait for the end of it, but for KILL.
	Freeze(ctx context.Context, frozen bool) error
	// Update changes the limits that the request names. One that the kernel does not have is ErrUnsupported. Nothing is
	// undone where it returns an error.
	Update(r api.Resources) error
	// Stats tells what the container uses. One whose process has ended is ErrConflict.
	Stats() (api.StatsReply, error)
	// Top lists the container's processes by their numbers in it, at most 4096.
	Top(ctx context.Context) ([]api.ProcessInfo, error)
	// Wait returns when the process has ended, however it did: started or not.
	Wait() api.Exit
	// Remove kills what still runs, waits for its end, and releases everything. After an error it may be called again.
	Remove(data Data) error
}

// Process is a process that Exec has started. When the container's first process ends, it is killed.
type Process interface {
	PID() int
	// Stdio returns the agent's ends of the process's stdio. They belong to the caller, who closes them.
	Stdio() Stdio
	// Signal sends a signal, by its Linux number. A process that has ended is ErrConflict.
	Signal(sig int) error
	// Kill kills the process and all that it started.
	Kill() error
	// Wait returns when the process has ended.
	Wait() api.Exit
	// Release is called once after Wait. What the process started and left goes on.
	Release()
}

// Reader is an end of a pipe or a terminal that a process writes to.
type Reader interface {
	io.ReadCloser
	SetReadDeadline(t time.Time) error
}

// Stdio are the agent's ends of a process's stdio.
type Stdio struct {
	Stdin  io.WriteCloser // nil where the process has none; Close makes a Write under way return
	Stdout Reader         // of a terminal, its output
	Stderr Reader         // nil for a terminal
	// Resize sets the size of the terminal; nil where there is none.
	Resize func(api.Size) error
	// EOF types the end of input on the terminal; nil where there is none, and Stdin is closed instead.
	EOF func() error
}
