// Package vm is what arcbox needs of a hypervisor: a Driver starts an Instance from a Spec. Packages below it implement
// drivers: vm/qemu for QEMU, vm/vz for Apple's Virtualization framework. Abilities that not every driver has are interfaces
// of their own, found by type assertion on the Instance.
package vm

import (
	"context"
	"io"
	"net"
)

// Driver starts virtual machines.
type Driver interface {
	// Name returns the driver's name, for example "qemu".
	Name() string
	// Capabilities tells what the driver's machines can do on this host.
	Capabilities() Capabilities
	// Start starts a machine. It returns when the hypervisor runs; the guest may still be booting, which Dial waits for.
	// ctx bounds the start, not the machine. Where Start returns an error, nothing is left. The error wraps ErrInvalid for
	// a Spec that says nonsense, ErrNotFound for a file that does not exist, ErrUnsupported for what this host or driver
	// cannot do, and ErrUnavailable where the hypervisor is missing or ended.
	Start(ctx context.Context, spec Spec) (Instance, error)
}

// Capabilities are what the machines of a driver can do. What one lacks is ErrUnsupported for who asks for it all the same.
type Capabilities struct {
	Console bool // instances are ConsoleTailers
	Pause   bool // instances are Pausers

	ReturnMemory bool // Spec.ReturnMemory

	// Disks while the machine runs: instances are DiskAttachers where there is any of this.
	AttachReadOnly bool // read-only ones can be added
	AttachWritable bool // others too; without it they belong into Spec.Disks
	Bays           bool // Spec.Bays
	Detach         bool // the guest has let a disk go when DetachDisk returns; without it only those attached later go, from sight

	Snapshot    bool // the driver is a Shaper and its instances are Snapshotters, at least for some Specs
	Fork        bool // instances are Forkers, where they were started with Spec.Forkable
	SharedState bool // machines that go on from one state share the memory that they do not write

	ForeignArch bool // guests of another architecture than the host's run, emulated
	NIC         bool // Spec.NIC: instances are Networked
	Shares      bool // Spec.Shares
	Rosetta     bool // Spec.Rosetta
}

// Instance is a started machine. Its methods may be called from many goroutines.
type Instance interface {
	// Dial opens a stream to a port on which the guest listens. It waits for a guest that is still booting, until ctx
	// ends or the machine does; the error then tells why it ended. Half-close works where the connection has a CloseWrite
	// method. A port on which nobody listens is ErrUnavailable, from Dial or from the stream's first read.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Shutdown asks the machine to power off, waits until it has, and kills it when ctx ends first; the error is then
	// that of ctx. It is for guests that do not answer any more: a guest with an agent is asked by the agent.
	Shutdown(ctx context.Context) error
	// Done is closed when the machine has ended and everything of it is released.
	Done() <-chan struct{}
	// Err tells why the machine ended: nil while it runs, after Close and Shutdown, and after a power-off by the guest.
	// Otherwise it wraps ErrUnavailable and has the last lines of the guest's console in its message.
	Err() error
	// Close kills the machine and returns when everything of it is released. A second call waits too, then returns nil.
	Close() error
}

// DiskAttacher is an Instance that takes disks while it runs.
type DiskAttacher interface {
	// AttachDisk adds a disk. It returns when the hypervisor has it; the guest sees it some time later under its serial.
	// A disk whose ID is attached already is ErrExists. With the Slot of a bay the disk is in it when AttachDisk returns, and
	// the guest, which is told nothing, finds it under the bay's serial; a bay that has a disk is ErrExists too. Other slots
	// are ErrInvalid: a running machine chooses.
	AttachDisk(ctx context.Context, d Disk) error
	// DetachDisk removes the disk with the ID and returns when the guest has let it go. An unknown one is ErrNotFound. For
	// one in a bay the bay goes, and comes back empty.
	DetachDisk(ctx context.Context, id string) error
}

// Pauser is an Instance that can be paused.
type Pauser interface {
	// Pause stops the guest's processors. Its memory and its streams stay. A paused machine stays paused.
	Pause(ctx context.Context) error
	// Resume lets a paused machine go on. A running machine goes on running.
	Resume(ctx context.Context) error
}

// Networked is an Instance whose machine was started with Spec.NIC.
type Networked interface {
	// NIC returns the host's end of the network interface, which is always the same. It carries Ethernet frames both ways:
	// on a stream each after its length in four bytes, big endian; on a connection of messages (unixgram) each is one. What
	// is written must be read by the guest for more to be taken. It belongs to the caller, and ends with the machine. It is
	// nil where there is no interface.
	NIC() net.Conn
}

// ConsoleTailer is an Instance that keeps the last lines of its guest's console.
type ConsoleTailer interface {
	// ConsoleTail returns the last lines of the guest's console, without control characters; also after the machine's end.
	ConsoleTail() string
}

// Snapshotter is an Instance that can save itself, so that other machines go on from where it is. The machine must have
// been started with Spec.MemoryFile, and without State or with OwnMemory: its memory is in that file then.
type Snapshotter interface {
	// Snapshot pauses the machine and writes the state of its devices to a file at path, which it makes. The machine
	// stays paused; who goes on with it changes the memory file, which the snapshot needs as it is.
	Snapshot(ctx context.Context, path string) error
}

// Learner is an Instance that has gone on from a state and can say what machines do that go on from there.
type Learner interface {
	// Learn notes beside the state what memory this machine has used since it went on, so that those which go on from now
	// have it from the start: those with Spec.Eager where eager is true, else those without. It is written when the machine has ended,
	// and none may be going on from the state then. A second call with the same eager replaces the first. Where machines do not go on faster for
	// it, Learn is ErrUnsupported.
	Learn(ctx context.Context, eager bool) error
}

// Imager is a Driver that saves itself with a machine where it can, in an image beside the state, so that machines go on from
// there faster: the more so, the less the machine has done before. One that is saved soon after it went on itself, see
// Spec.OwnMemory, makes a better image than one that has booted.
type Imager interface {
	// Stale tells that there is an image beside a state, and that it cannot be used any more: from a state that is saved
	// now, machines would go on faster.
	Stale(state string) bool
	// DropImage removes the image beside a state, so that machines go on from the state alone. Where there is none it is
	// ErrNotFound.
	DropImage(state string) error
}

// Forker is an Instance that can be saved while it runs, and goes on. The machine must have been started with
// Spec.Forkable.
type Forker interface {
	// Fork pauses the machine, writes its memory and the state of its devices to the files, which it makes, calls copy while
	// the machine stands still and its disks are written out, and lets the machine go on, after an error too. It syncs
	// nothing. The disks that copy gets are those that the machine has, with their slots: a machine that goes on from the
	// files must be given the same, or copies.
	Fork(ctx context.Context, memory, state string, copy func(disks []Disk) error) error
}

// Shaper is a Driver whose machines can go on from a saved state: its instances are Snapshotters.
type Shaper interface {
	// Shape returns a text that is equal for two Specs where a machine of one can go on from the state of a machine of
	// the other, given the same kernel and initramfs. ErrUnsupported says that no machine of the Spec can be saved.
	Shape(spec Spec) (string, error)
}

// Accelerator says how guest code is executed.
type Accelerator string

// The accelerators.
const (
	AcceleratorAuto Accelerator = ""    // the best one that works on this host
	AcceleratorKVM  Accelerator = "kvm" // Linux
	AcceleratorHVF  Accelerator = "hvf" // macOS
	AcceleratorTCG  Accelerator = "tcg" // software emulation, everywhere
)

// Transport says how streams reach the guest.
type Transport string

// The transports.
const (
	TransportAuto   Transport = ""       // the driver's own choice; for QEMU serial
	TransportSerial Transport = "serial" // a virtio-serial port that carries a multiplexer
	TransportVsock  Transport = "vsock"  // AF_VSOCK; needs /dev/vhost-vsock on a Linux host
)

// Spec describes a machine to start.
type Spec struct {
	Name        string      // shown in the host's process list; letters, digits, '-', '_' and '.'; "" is "arcbox"
	Arch        string      // of the guest, as GOARCH: "amd64" or "arm64"; "" is the host's
	Kernel      string      // path of an uncompressed kernel: vmlinux for amd64, Image for arm64
	Initramfs   string      // path of the initramfs
	Cmdline     string      // of the kernel, added to what the driver needs itself
	CPUs        int         // 0 is 1
	Memory      int64       // bytes, rounded up to MiB; 0 is 512 MiB
	Disks       []Disk      // attached from the start
	Bays        []Bay       // of which the first has slot 1; Capabilities.Bays
	Console     io.Writer   // gets the guest's console output; nil drops it. Write must not block for long
	Accelerator Accelerator // zero chooses
	Transport   Transport   // zero chooses
	Shares      []Share     // directories of the host that the guest can mount; Capabilities.Shares
	NIC         bool        // the machine has a network interface, see Networked
	Rosetta     bool        // programs for amd64 run on an arm64 Mac; Capabilities.Rosetta

	// Dir is a directory of this machine alone, in which the driver may keep files while it runs. It must be on the file
	// system of the disks that are attached later. "" lets the driver take one of the system's.
	Dir string

	// MemoryFile is a file that is the machine's memory: what the guest writes is in it. It is made where it does not
	// exist. "" is memory of the machine's own.
	MemoryFile string
	// State is a file that Snapshotter.Snapshot has written. The machine goes on from there, with the memory in MemoryFile,
	// of which it sees a private copy: it never changes the file, and shares with others what it does not write. All else
	// in the Spec but Name, Console, Forkable, Eager, OwnMemory and Disks must be as it was in the machine that was saved; Disks must be
	// those that the saved machine had, or copies, with their slots. What is in bays may be what it likes, as far as the
	// guest has not looked. "" boots.
	State string
	// Eager says that a machine which goes on from State will have work at once: where something has learned what memory
	// such machines use, see Learner, it begins with that. It is there a little later, and sooner done.
	Eager bool
	// OwnMemory says that nobody else goes on from MemoryFile: the machine goes on from State and writes to the file, as one
	// that has booted does, and can be saved by Snapshot in turn.
	OwnMemory bool
	// ReturnMemory gives memory that the guest does not use any more back to the host, soon and by itself. The machine's
	// memory is its own, as with Forkable, which cannot be had together with it: what has been saved is shared, and must
	// not be given back.
	ReturnMemory bool
	// Forkable lets the machine be saved while it runs, see Forker. Its memory is its own, and with State a copy of
	// MemoryFile from the start; without State there must be no MemoryFile.
	Forkable bool
}

// Disk is a disk of a machine: a raw image file.
type Disk struct {
	ID       string // serial number by which the guest finds the disk: 1 to 20 letters, digits, '-' and '_'
	Path     string // of the raw image
	ReadOnly bool
	// Backing is the path of a raw image of which Path, in the format qcow2, has what differs. Nobody writes to it. "" is
	// none, and Path is a raw image.
	Backing string
	// Slot is the place on the bus, from 1; where there is a bay, the disk is in it. 0 is a free one that is no bay. A machine
	// that goes on from a state has its disks where they were.
	Slot int
}

// Bay is a place for a disk that the guest knows from the start, with a serial number of its own: see BaySerial. A disk in
// it costs the guest nothing until it is used, and is there at once in a machine that goes on from a state. An empty one
// reads as zeros, and what is written to it is lost.
type Bay struct {
	Size     int64 `json:"size"`                // bytes that the guest sees, up to 1 TiB. A disk may be smaller: what is beyond its end are I/O errors
	ReadOnly bool  `json:"read_only,omitempty"` // and so must be the disk
}

// Share is a directory of the host that a guest can mount as virtio-fs.
type Share struct {
	Tag      string // by which the guest mounts it: 1 to 35 letters, digits, '-', '_' and '.'
	Path     string // of the directory
	ReadOnly bool
}
