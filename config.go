package arcbox

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Config configures New. The zero value works: it uses the user's data directory, the best accelerator there is, and the
// kernel that the system's package manager offers.
type Config struct {
	// DataDir holds images, boot assets and the records of containers and machines. It is made with mode 0700 where it
	// does not exist, and may be used by many processes at once. "" is the directory arcbox in the user's data
	// directory: $XDG_DATA_HOME or ~/.local/share on Linux, ~/Library/Application Support on macOS.
	DataDir string

	// SocketPath is where a program that embeds arcbox serves the gRPC API. arcbox itself does not listen on it: the
	// front end that will is not written yet. "" is no socket.
	SocketPath string

	// DockerSocket is where a program that embeds arcbox serves the Docker API. arcbox itself does not listen on it: the
	// front end that will is not written yet. "" is no socket.
	DockerSocket string

	// Ephemeral gives the Runtime a default machine of its own, which goes with its disk and its containers at Close, as
	// all machines do that it makes. Images are shared with the other users of the data directory; machines, volumes and
	// containers of theirs are not seen. It is what a test wants.
	Ephemeral bool

	VM        VMConfig        // the virtual machine; the zero value works
	Network   NetworkConfig   // networks; the zero value works
	Lifecycle LifecycleConfig // when the machine starts and stops; the zero value works
	Boot      BootConfig      // what the machine boots from; the zero value works
	Registry  RegistryConfig  // how registries are spoken to; the zero value works
	Images    ImagesConfig    // what images may ask of the host; the zero value works

	// LockTimeout is how long is waited for a machine that another process has, after which the error is ErrInUse. 0 does
	// not wait, and gives a Runtime whose default machine another one has, in whatever process, a default machine of its
	// own, which ends with it. Less than 0 does not wait, and makes that ErrInUse of New.
	LockTimeout time.Duration

	// Logger gets what is worth telling and is not returned as an error. nil is silent.
	Logger *slog.Logger
}

// VMConfig configures the virtual machine in which containers run.
type VMConfig struct {
	// CPUs is the number of virtual processors. 0 is the number of the host's, at most 4.
	CPUs int
	// Memory of the machine in bytes. 0 is 1 GiB. The host gives it page by page as the guest uses it.
	Memory int64
	// DiskSize is the size in bytes of the disk that holds what containers write and log, when it is made: it keeps its
	// size. 0 is 64 GiB. The file takes only what is written to it, and gives back what is removed.
	DiskSize int64
	// Ephemeral keeps what containers write in the machine's memory: there is no disk, and no record of a container is
	// there after Close.
	Ephemeral bool
	// ReturnMemory gives memory that the default machine does not use any more back. See MachineSpec.ReturnMemory. With
	// Forkable it is ErrInvalid.
	ReturnMemory bool
	// Forkable lets SnapshotMachine save the default machine. See MachineSpec.Forkable.
	Forkable bool
	// Snapshot makes the default machine of an ephemeral Runtime from a snapshot, by id or name, with its containers. Its
	// first start goes on from there. CPUs, Memory and DiskSize are those of the snapshot. "" is none; with a Runtime that
	// is not ephemeral it is ErrInvalid.
	Snapshot string
	// Arch is the guest's architecture as GOARCH has it: "amd64" or "arm64". "" is the host's. Another one than the
	// host's is emulated.
	Arch string
	// Hypervisor runs the machine. The zero value is the Virtualization framework on a Mac, where the program was built
	// with cgo and nothing is asked for that only QEMU has, and QEMU elsewhere.
	Hypervisor Hypervisor
	// SharedDir is a directory of the host that the hypervisor shares with the machine from its start, where it can: on
	// macOS. What containers mount of it needs no question to this program for each file. The guest sees all that is in it,
	// so let it be no larger than it must. "" is none: directories are mounted as they are without it, see Mount. Elsewhere it
	// means nothing.
	SharedDir string
	// Accelerator executes the guest's code. The zero value takes hardware virtualisation where it really works and
	// software emulation elsewhere. One that does not work here is ErrUnsupported when the machine starts.
	Accelerator vm.Accelerator
	// Transport carries calls to the guest. The zero value is a virtio-serial port, which works everywhere.
	Transport vm.Transport
	// QEMU is the path of the QEMU binary. "" looks for qemu-system-x86_64 or qemu-system-aarch64 in PATH.
	QEMU string
	// Template says how a machine comes to be. The zero value lets it go on from a machine of the same shape that has
	// booted once and was saved in the boot cache, in a twentieth of the time of a boot; the first one makes that, which
	// takes some seconds and 200 MB of disk. With amd64 on Linux its QEMU is saved too and goes on under a filter of system
	// calls, with its memory at the same addresses in all machines from one template: RATIONALE.md has what that means. Where this
	// is not possible, as with hardware virtualisation for now, machines boot.
	Template TemplateMode
	// Console gets what the guest prints on its console, kernel messages included. Writes must not block for long. nil
	// drops it; the last lines are part of every error of the machine all the same.
	Console io.Writer
}

// TemplateMode says whether machines go on from a template.
type TemplateMode string

// The template modes.
const (
	TemplateAuto TemplateMode = ""    // where it is possible
	TemplateOff  TemplateMode = "off" // every machine boots
)

// NetworkConfig configures networks. It has no fields yet: see NetworkSpec.
type NetworkConfig struct{}

// LifecycleConfig says when the machine stops.
type LifecycleConfig struct {
	// IdleTimeout is how long a machine runs on that nobody uses: no container of it runs, no call to it is in progress,
	// and nobody holds it. A container that was created and not started yet uses it, and so does one that has exited where
	// what it wrote is in the machine's memory. 0 is 5 minutes. Negative is for ever, until StopMachine or Close.
	IdleTimeout time.Duration
	// Recovery says what happens when a machine that runs ends by itself: QEMU was killed, the guest's kernel panicked, its
	// agent is silent. A machine whose first start fails is not tried again.
	Recovery RecoveryPolicy
	// HealthInterval is how often the agent of a machine is asked whether it is well. 0 is 10 s, negative never asks.
	HealthInterval time.Duration
	// HealthTimeout is how long an agent may take to answer before its machine is taken for crashed. 0 is 30 s.
	HealthTimeout time.Duration
}

// RecoveryPolicy says how a machine is started anew that has crashed while something used it: a container ran, a call was
// in progress, somebody held it, or it was started by name. Containers with a restart policy come back then.
type RecoveryPolicy struct {
	MaxRetries int           // attempts in a row; 0 is 5, negative is none
	Backoff    time.Duration // before the first attempt; each further one waits twice as long; 0 is 500 ms
	MaxBackoff time.Duration // no wait is longer; 0 is 30 s
	ResetAfter time.Duration // a machine that ran this long begins anew to count; 0 is a minute
}

// compile turns the policy into that of the layer below.
func (p RecoveryPolicy) compile() lifecycle.RecoveryPolicy {
	n := p.MaxRetries
	switch {
	case n == 0:
		n = defaultRetries
	case n < 0:
		n = 0
	}
	return lifecycle.RecoveryPolicy{MaxRetries: n, Backoff: p.Backoff, MaxBackoff: p.MaxBackoff, ResetAfter: p.ResetAfter}
}

// BootConfig says what the machine boots from. Without Kernel, URL and Image the kernel is the distribution's own
// package on Debian and Ubuntu, fetched into the cache with the system's apt client, without root and without installing
// it; elsewhere it is one that is pinned by digest.
type BootConfig struct {
	// Dir is the cache of kernels, agents and initramfs. Any number of processes and data directories may share it. "" is
	// the directory boot in Config.DataDir.
	Dir string
	// Kernel is a kernel to boot: vmlinux, bzImage, arm64 Image, compressed or not. "" finds one.
	Kernel string
	// Modules is the directory of Kernel's modules, as in /lib/modules/<release>. "" is none: everything must be built in.
	Modules string
	// Agent is the agent's binary, a static one for the guest's architecture. "" builds it with the Go toolchain.
	Agent string
	// URL of a kernel package (.deb) to use in place of the search. SHA256, in hexadecimal, must be given with it.
	URL, SHA256 string
	// Image is the reference of an OCI artifact that holds a kernel and its modules, in place of the search.
	Image string
	// Progress is told what is being fetched, unpacked and built. It is called from one goroutine at a time and must
	// return soon. nil is none.
	Progress func(boot.Progress)
}

// RegistryConfig says how images are pulled and pushed. The zero value works.
type RegistryConfig struct {
	// Keychain finds credentials. nil uses docker's config file and its credential helpers, then podman's.
	Keychain authn.Keychain
	// PlainHTTP names hosts, with port where they have one, that are spoken to by http. localhost and loopback addresses
	// are where they do not speak https. Everything else is spoken to by https.
	PlainHTTP []string
	// Mirrors are asked before a registry when an image is pulled, by the registry's host as references have it
	// ("docker.io"), in their order; the registry itself is asked last, and alone gets what is pushed. A mirror is
	// "host[:port][/path]", without a scheme; PlainHTTP and Keychain hold for it too. What it says of a tag is believed.
	Mirrors map[string][]string
	// CA has certificates in PEM that registries are trusted by, besides the system's. nil is none.
	CA []byte
	// Proxy chooses the proxy for a request. nil is none; http.ProxyFromEnvironment reads the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Transport carries the requests. nil is a transport with sane timeouts that obeys CA and Proxy; where it is not nil,
	// those must be.
	Transport http.RoundTripper
	// Parallel is how many layers of one image are fetched, sent and converted at once. 0 is 3.
	Parallel int
}

// ImagesConfig bounds what an image may ask of the host: one that asks for more is ErrInvalid. Zero is the default.
type ImagesConfig struct {
	// LayerSize is how many bytes of files one layer may hold, uncompressed. 0 is 16 GiB; more than 8 TiB is 8 TiB.
	LayerSize int64
	// LayerEntries is how many names one layer may have. 0 is 1,000,000. While a layer is converted each takes up to 1.4 kB
	// of memory; layers of many names take their turns.
	LayerEntries int
	// Layers is how many layers one image may have. 0 is 127.
	Layers int
	// BlobSize is how many bytes one layer may have as it comes, compressed or not. 0 is 16 GiB.
	BlobSize int64
}

func (c ImagesConfig) check() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"LayerSize", c.LayerSize}, {"LayerEntries", int64(c.LayerEntries)}, {"Layers", int64(c.Layers)},
		{"BlobSize", c.BlobSize},
	} {
		if f.value < 0 {
			return fmt.Errorf("%w Config.Images.%s %d: use a positive number, or 0 for the default", errs.ErrInvalid, f.name, f.value)
		}
	}
	return nil
}

const (
	defaultMemory      = 1 << 30
	minMemory          = 128 << 20
	defaultIdleTimeout = 5 * time.Minute
	maxDefaultCPUs     = 4

	defaultRetries        = 5 // after a crash
	defaultHealthInterval = 10 * time.Second
	defaultHealthTimeout  = 30 * time.Second
)

// withDefaults returns the config with every zero value replaced, or an error that names the field that is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		dir, err := userDataDir()
		if err != nil {
			return c, fmt.Errorf("%w: find the user's data directory: %w; set Config.DataDir", errs.ErrInvalid, err)
		}
		c.DataDir = filepath.Join(dir, "arcbox")
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, fmt.Errorf("%w Config.DataDir %q: %w", errs.ErrInvalid, c.DataDir, err)
	}
	c.DataDir = abs
	if c.Boot.Dir == "" {
		c.Boot.Dir = filepath.Join(c.DataDir, "boot")
	}
	if c.VM.CPUs == 0 {
		c.VM.CPUs = min(runtime.NumCPU(), maxDefaultCPUs)
	}
	if c.VM.CPUs < 0 || c.VM.CPUs > 255 {
		return c, fmt.Errorf("%w Config.VM.CPUs %d: use 1 to 255, or 0 for the default", errs.ErrInvalid, c.VM.CPUs)
	}
	if c.VM.Memory == 0 {
		c.VM.Memory = defaultMemory
	}
	if c.VM.Memory < minMemory {
		return c, fmt.Errorf("%w Config.VM.Memory %d: it is in bytes; use at least %d, or 0 for the default",
			errs.ErrInvalid, c.VM.Memory, minMemory)
	}
	if c.VM.DiskSize, err = disk.Round(c.VM.DiskSize); err != nil {
		return c, fmt.Errorf("Config.VM.DiskSize: %w", err)
	}
	if c.VM.Arch == "" {
		c.VM.Arch = runtime.GOARCH
	}
	if c.VM.Arch != "amd64" && c.VM.Arch != "arm64" {
		return c, fmt.Errorf("%w Config.VM.Arch %q: use amd64 or arm64", errs.ErrInvalid, c.VM.Arch)
	}
	if err := c.VM.Hypervisor.check(); err != nil {
		return c, err
	}
	if c.VM.Snapshot != "" && !c.Ephemeral {
		return c, fmt.Errorf("%w Config.VM.Snapshot %q: the default machine goes on from a snapshot where Config.Ephemeral is set; "+
			"use CreateMachine for another one", errs.ErrInvalid, c.VM.Snapshot)
	}
	if c.VM.Forkable && c.VM.ReturnMemory {
		return c, fmt.Errorf("%w Config.VM.Forkable with Config.VM.ReturnMemory: what a fork shares must not be given back: choose one", errs.ErrInvalid)
	}
	if c.VM.Template != TemplateAuto && c.VM.Template != TemplateOff {
		return c, fmt.Errorf("%w Config.VM.Template %q: use off, or leave it empty", errs.ErrInvalid, c.VM.Template)
	}
	if c.Registry.Parallel < 0 || c.Registry.Parallel > 64 {
		return c, fmt.Errorf("%w Config.Registry.Parallel %d: use 1 to 64, or 0 for the default", errs.ErrInvalid, c.Registry.Parallel)
	}
	if err := c.Images.check(); err != nil {
		return c, err
	}
	if c.Lifecycle.IdleTimeout == 0 {
		c.Lifecycle.IdleTimeout = defaultIdleTimeout
	}
	if c.Lifecycle.HealthInterval == 0 {
		c.Lifecycle.HealthInterval = defaultHealthInterval
	}
	if c.Lifecycle.HealthTimeout < 0 {
		return c, fmt.Errorf("%w Config.Lifecycle.HealthTimeout %s: use a time, or 0 for %s", errs.ErrInvalid, c.Lifecycle.HealthTimeout, defaultHealthTimeout)
	}
	if c.Lifecycle.HealthTimeout == 0 {
		c.Lifecycle.HealthTimeout = defaultHealthTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// userDataDir is where programs keep a user's data on this system.
func userDataDir() (string, error) {
	home, err := os.UserHomeDir()
	switch {
	case runtime.GOOS == "darwin" && err == nil:
		return filepath.Join(home, "Library", "Application Support"), nil
	case runtime.GOOS == "windows":
		return os.UserConfigDir()
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "share"), nil
}
