package arcbox

import (
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// ContainerSpec describes a container to make. Only Image is required. A value that cannot work is ErrInvalid, with the
// field and what it may be, before anything is made.
type ContainerSpec struct {
	// Machine is the name of the machine to run in, which is started where it does not run. "" is DefaultMachine.
	Machine string

	Name  string // unique; letters, digits, '_', '.', '-'; "" is the first 12 characters of the id
	Image string // reference or id of the image

	Entrypoint []string            // in place of the image's entrypoint, and its command is dropped then; nil is the image's
	Args       []string            // in place of the image's command; empty is the image's
	Env        []string            // KEY=value over the image's; KEY alone removes what the image sets
	WorkingDir string              // absolute; made where it does not exist; "" is the image's, or /
	User       string              // user[:group], names of the image's own files or numbers; "" is the image's, or root
	Groups     []string            // more groups of the process, names or numbers; empty is those of the user
	Hostname   string              // "" is the first 12 characters of the id
	Networks   []NetworkAttachment // empty is DefaultNetwork. The way to the outside is that of the first one that is not internal
	Network    string              // in place of Networks: NetworkNone, NetworkMachine, or "container:" and an id or name, whose network is shared
	Ports      []PortMapping       // published on the host
	Sockets    []SocketMapping     // Unix sockets that are published on the host
	ExtraHosts []string            // lines of /etc/hosts as "name:ip"
	TTY        bool                // give the process a terminal; its stderr is then part of its stdout
	Stdin      bool                // give the process a stdin that can be written; false is /dev/null
	Init       bool                // run a PID 1 of arcbox that reaps orphans and hands signals on to the process

	StopSignal  string        // that asks the process to end, as "TERM"; "" is the image's, or TERM
	StopTimeout time.Duration // from StopSignal to KILL in StopContainer; 0 is 10 seconds, negative is for ever

	Labels     map[string]string // over the image's
	AutoRemove bool              // remove the container when its process has ended; excludes a restart policy
	Restart    RestartPolicy     // what follows the end of the process; the zero value is nothing
	Health     *HealthCheck      // how to find out whether it is well; nil is the image's check, where it has one

	Privileged      bool              // all capabilities and devices, nothing masked or read-only, no seccomp; CapAdd, CapDrop and Seccomp are without effect
	ReadOnly        bool              // the root cannot be written; Tmpfs mounts can
	NoNewPrivileges bool              // set-user-id programs and file capabilities give nothing
	CapAdd          []string          // capabilities over the default set, which is Docker's; with or without CAP_; ALL is all
	CapDrop         []string          // capabilities not to have; ALL leaves those of CapAdd only
	Seccomp         string            // "" is Docker's default profile, SeccompUnconfined none, else a profile in Docker's JSON
	OOMScoreAdj     int               // -1000 to 1000: higher is killed earlier when the machine lacks memory
	Ulimits         []Ulimit          // limits of the process; those not named are the machine's
	Sysctls         map[string]string // of the container's own namespaces: net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem, kernel.domainname
	Tmpfs           []Tmpfs           // file systems in memory
	Mounts          []Mount           // volumes, directories of the host and more; what lies higher is mounted first, Tmpfs included
	ShmSize         int64             // bytes of /dev/shm; 0 is 64 MiB
	Resources       Resources         // limits of all processes of the container; the zero value is none
	Log             LogLimits         // of what is kept of the output; the zero value works
}

// SeccompUnconfined is the ContainerSpec.Seccomp of a container without a filter of system calls.
const SeccompUnconfined = container.Unconfined

// Resources are limits of all processes of a container together. A zero field sets no limit; in UpdateOptions it changes
// nothing. Limits that the guest's kernel cannot set are ErrUnsupported.
type Resources struct {
	Memory     int64         // bytes, at least 6 MiB; -1 is none. Where it is reached and nothing can be freed, a process is killed
	MemorySwap int64         // bytes of memory and swap together, at least Memory; -1 is none; 0 is twice Memory
	CPUs       float64       // processors' worth of time, 0.01 and more; -1 is no limit. Excludes CPUQuota and CPUPeriod
	CPUQuota   time.Duration // processor time in each period, at least 1 ms; -1 is none
	CPUPeriod  time.Duration // 1 ms to 1 s; 0 is 100 ms
	CPUShares  uint64        // weight among the containers that want the processors, 2 to 262,144; 0 is 1024
	CPUSet     string        // the processors to use, as "0-2,4"; "" is all
	PIDs       int64         // processes and threads; -1 is no limit
	IOWeight   uint16        // weight of block I/O, 10 to 1000
}

// Ulimit is a resource limit of each process, as of setrlimit(2).
type Ulimit struct {
	Name string // "nofile", "nproc", "core" and so on
	Soft int64  // -1 is none
	Hard int64  // at least Soft; -1 is none
}

// Tmpfs is a file system in memory, mounted into a container.
type Tmpfs struct {
	Path string // absolute; made where it does not exist
	Size int64  // bytes; 0 is half of the machine's memory
	Mode uint32 // permission bits; 0 is 01777
	Exec bool   // programs on it may be executed
}

// LogLimits bounds the log of a container. The oldest file is dropped when there would be more.
type LogLimits struct {
	MaxSize  int64 // bytes of one file, at least 4 KiB; 0 is 10 MiB
	MaxFiles int   // the newest included, at most 1000; 0 is 3
}

// RestartPolicy says what happens when the process of a container has ended without StopContainer or KillContainer.
//
// The first restart comes after 100 ms, each further one after twice the time, up to a minute; a process that ran for ten
// seconds begins anew. Containers whose machine crashed are restarted too, in a new one. When the program ends nothing is
// restarted, by no policy: StartContainer does it in the next one.
type RestartPolicy struct {
	Name       RestartName // the zero value is RestartNo
	MaxRetries int         // of RestartOnFailure; 0 is no end
}

// RestartName names a restart policy.
type RestartName string

// The restart policies.
const (
	RestartNo            = RestartName(container.RestartNo)            // never; the same as ""
	RestartAlways        = RestartName(container.RestartAlways)        // whatever the exit code
	RestartOnFailure     = RestartName(container.RestartOnFailure)     // for an exit code other than 0
	RestartUnlessStopped = RestartName(container.RestartUnlessStopped) // as RestartAlways
)

// HealthCheck is a command that is executed in a running container again and again to find out whether it is well: its
// exit code is 0 then. In a ContainerSpec a zero field is the image's; where that has none, the default.
type HealthCheck struct {
	Test          []string      // "CMD" and a command with arguments; "CMD-SHELL" and a script for /bin/sh; "NONE": no check
	Interval      time.Duration // from the end of a check to the next; default 30 s
	Timeout       time.Duration // of one check, which is killed then and counts as failed; default 30 s
	StartPeriod   time.Duration // after the start, in which failures do not count until a check has succeeded; default 0
	StartInterval time.Duration // in place of Interval within StartPeriod; default 5 s
	Retries       int           // failures in a row that make a container unhealthy; default 3
}

// compile turns the spec into the one of the layer below.
func (s ContainerSpec) compile() container.Spec {
	out := container.Spec{
		Name: s.Name, Machine: s.Machine, Image: s.Image, Entrypoint: s.Entrypoint, Args: s.Args, Env: s.Env, WorkingDir: s.WorkingDir,
		User: s.User, Groups: s.Groups, Hostname: s.Hostname, ExtraHosts: s.ExtraHosts, Network: s.Network, TTY: s.TTY, Stdin: s.Stdin, Init: s.Init,
		StopSignal: s.StopSignal, StopTimeout: s.StopTimeout, Labels: s.Labels, AutoRemove: s.AutoRemove,
		Restart: s.Restart.compile(), Health: (*container.HealthCheck)(s.Health),
		Privileged: s.Privileged, ReadOnly: s.ReadOnly, NoNewPrivileges: s.NoNewPrivileges,
		CapAdd: s.CapAdd, CapDrop: s.CapDrop, Seccomp: s.Seccomp, OOMScoreAdj: s.OOMScoreAdj, Sysctls: s.Sysctls,
		ShmSize: s.ShmSize, Resources: container.Resources(s.Resources), Log: container.LogLimits(s.Log),
	}
	for _, n := range s.Networks {
		out.Networks = append(out.Networks, network.Attachment(n))
	}
	for _, p := range s.Sockets {
		out.Sockets = append(out.Sockets, container.PublishSocket(p))
	}
	for _, u := range s.Ulimits {
		out.Ulimits = append(out.Ulimits, container.Ulimit(u))
	}
	for _, t := range s.Tmpfs {
		out.Tmpfs = append(out.Tmpfs, container.Tmpfs(t))
	}
	for _, m := range s.Mounts {
		out.Mounts = append(out.Mounts, m.compile())
	}
	return out
}

func (p RestartPolicy) compile() container.RestartPolicy {
	return container.RestartPolicy{Name: container.RestartName(p.Name), MaxRetries: p.MaxRetries}
}

// containerSpec turns a spec of the layer below back.
func containerSpec(s container.Spec) ContainerSpec {
	out := ContainerSpec{
		Name: s.Name, Machine: s.Machine, Image: s.Image, Entrypoint: s.Entrypoint, Args: s.Args, Env: s.Env, WorkingDir: s.WorkingDir,
		User: s.User, Groups: s.Groups, Hostname: s.Hostname, ExtraHosts: s.ExtraHosts, Network: s.Network, TTY: s.TTY, Stdin: s.Stdin, Init: s.Init,
		StopSignal: s.StopSignal, StopTimeout: s.StopTimeout, Labels: s.Labels, AutoRemove: s.AutoRemove,
		Restart: RestartPolicy{RestartName(s.Restart.Name), s.Restart.MaxRetries}, Health: (*HealthCheck)(s.Health),
		Privileged: s.Privileged, ReadOnly: s.ReadOnly, NoNewPrivileges: s.NoNewPrivileges,
		CapAdd: s.CapAdd, CapDrop: s.CapDrop, Seccomp: s.Seccomp, OOMScoreAdj: s.OOMScoreAdj, Sysctls: s.Sysctls,
		ShmSize: s.ShmSize, Resources: Resources(s.Resources), Log: LogLimits(s.Log),
	}
	for _, n := range s.Networks {
		out.Networks = append(out.Networks, NetworkAttachment(n))
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, portMapping(network.Published(p)))
	}
	for _, p := range s.Sockets {
		out.Sockets = append(out.Sockets, SocketMapping(p))
	}
	for _, u := range s.Ulimits {
		out.Ulimits = append(out.Ulimits, Ulimit(u))
	}
	for _, t := range s.Tmpfs {
		out.Tmpfs = append(out.Tmpfs, Tmpfs(t))
	}
	for _, m := range s.Mounts {
		out.Mounts = append(out.Mounts, mountOf(m))
	}
	return out
}
