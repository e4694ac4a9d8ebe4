// Package container keeps the containers of a Runtime: their records, their states, and the compilation of what a
// caller asks for into the request that the agent carries out.
package container

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// Spec is what a caller asks for. It is part of a container's record.
type Spec struct {
	Name            string               `json:"name,omitempty"`
	Machine         string               `json:"machine,omitempty"` // "" is DefaultMachine
	Image           string               `json:"image"`
	Entrypoint      []string             `json:"entrypoint"` // nil is not the same as empty
	Args            []string             `json:"args,omitempty"`
	Env             []string             `json:"env,omitempty"`
	WorkingDir      string               `json:"working_dir,omitempty"`
	User            string               `json:"user,omitempty"`
	Groups          []string             `json:"groups,omitempty"`
	Hostname        string               `json:"hostname,omitempty"`
	Network         string               `json:"network,omitempty"`  // "" is Networks; none, machine, or container: and an id or name
	Networks        []network.Attachment `json:"networks,omitempty"` // empty is the default one
	Ports           []network.Publish    `json:"ports,omitempty"`
	Sockets         []PublishSocket      `json:"sockets,omitempty"`
	ExtraHosts      []string             `json:"extra_hosts,omitempty"` // name:ip
	TTY             bool                 `json:"tty,omitempty"`
	Stdin           bool                 `json:"stdin,omitempty"`
	Init            bool                 `json:"init,omitempty"`
	StopSignal      string               `json:"stop_signal,omitempty"`
	StopTimeout     time.Duration        `json:"stop_timeout,omitempty"` // 0 is DefaultStopTimeout, negative is for ever
	Labels          map[string]string    `json:"labels,omitempty"`
	AutoRemove      bool                 `json:"auto_remove,omitempty"`
	Restart         RestartPolicy        `json:"restart,omitzero"`
	Health          *HealthCheck         `json:"health,omitempty"` // nil is the image's
	Privileged      bool                 `json:"privileged,omitempty"`
	ReadOnly        bool                 `json:"read_only,omitempty"`
	NoNewPrivileges bool                 `json:"no_new_privileges,omitempty"`
	CapAdd          []string             `json:"cap_add,omitempty"`
	CapDrop         []string             `json:"cap_drop,omitempty"`
	Seccomp         string               `json:"seccomp,omitempty"` // "" is the default profile, Unconfined none, else a profile
	OOMScoreAdj     int                  `json:"oom_score_adj,omitempty"`
	Ulimits         []Ulimit             `json:"ulimits,omitempty"`
	Sysctls         map[string]string    `json:"sysctls,omitempty"` // set when the network interfaces are there
	Tmpfs           []Tmpfs              `json:"tmpfs,omitempty"`
	Mounts          []Mount              `json:"mounts,omitempty"`
	ShmSize         int64                `json:"shm_size,omitempty"`
	Resources       Resources            `json:"resources,omitzero"`
	Log             LogLimits            `json:"log,omitzero"`
}

// DefaultStopTimeout is how long a process may take from its stop signal to its end before it is killed.
const DefaultStopTimeout = 10 * time.Second

// Unconfined is the Seccomp of a Spec that wants no filter.
const Unconfined = "unconfined"

var (
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)
)

// limits of one spec; the agent's request must fit into one frame.
const (
	maxArgs     = 4096
	maxArgBytes = 128 << 10 // what Linux takes for one string of argv or envp
	maxAllBytes = 512 << 10
	maxList     = 256       // entries of a list or map other than arguments, variables and labels
	maxProfile  = 256 << 10 // bytes of a seccomp profile
)

// Validate checks what can be checked without the image.
func (s Spec) Validate() error {
	if s.Image == "" {
		return invalid("image", s.Image, "name the image to run")
	}
	for _, check := range []func(Spec) error{checkNames, checkProcess, checkLists, checkMounts, checkSecurity, checkLife, checkNetwork, checkSockets} {
		if err := check(s); err != nil {
			return err
		}
	}
	if err := s.Resources.validate(); err != nil {
		return err
	}
	return validateStrings(slices.Concat(s.Entrypoint, s.Args, s.Env, []string{s.WorkingDir, s.User}))
}

func checkNames(s Spec) error {
	if s.Name != "" {
		if err := checkName(s.Name); err != nil {
			return err
		}
	}
	if s.Machine != "" {
		if err := checkName(s.Machine); err != nil {
			return fmt.Errorf("machine: %w", err)
		}
	}
	if s.Hostname != "" && !hostPattern.MatchString(s.Hostname) {
		return invalid("hostname", s.Hostname, "use 1 to 63 letters, digits, '.' and '-'")
	}
	for _, h := range s.ExtraHosts {
		if _, err := parseHost(h); err != nil {
			return err
		}
	}
	return nil
}

func checkName(name string) error {
	if !namePattern.MatchString(name) {
		return invalid("name", name, "use 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit")
	}
	return nil
}

func checkProcess(s Spec) error {
	if s.WorkingDir != "" && !strings.HasPrefix(s.WorkingDir, "/") {
		return invalid("working directory", s.WorkingDir, "use an absolute path")
	}
	for _, e := range s.Env {
		if k, _, _ := strings.Cut(e, "="); k == "" {
			return invalid("environment variable", e, "use KEY=value, or KEY alone to remove what the image sets")
		}
	}
	for _, u := range append([]string{s.User}, s.Groups...) {
		if len(u) > 256 || strings.ContainsAny(u, "\x00\n") {
			return invalid("user or group", u, "use names or numbers of at most 256 bytes")
		}
	}
	for _, g := range s.Groups {
		if g == "" || strings.Contains(g, ":") {
			return invalid("group", g, "use a name or a number")
		}
	}
	return nil
}

// checkLists bounds what goes to the guest in lists.
func checkLists(s Spec) error {
	for what, n := range map[string]int{
		"extra hosts": len(s.ExtraHosts), "groups": len(s.Groups), "capabilities": len(s.CapAdd) + len(s.CapDrop),
		"ulimits": len(s.Ulimits), "sysctls": len(s.Sysctls), "tmpfs mounts": len(s.Tmpfs), "mounts": len(s.Mounts),
	} {
		if n > maxList {
			return fmt.Errorf("%w: %d %s are more than %d", errs.ErrInvalid, n, what, maxList)
		}
	}
	for _, u := range s.Ulimits {
		if _, err := u.compile(); err != nil {
			return err
		}
	}
	for k, v := range s.Sysctls {
		if err := checkSysctl(k, v); err != nil {
			return err
		}
	}
	for _, t := range s.Tmpfs {
		if err := t.validate(); err != nil {
			return err
		}
	}
	if s.ShmSize < 0 {
		return invalid("size of /dev/shm", fmt.Sprint(s.ShmSize), "it is in bytes; use 0 for 64 MiB")
	}
	if s.Log.MaxSize < 0 || s.Log.MaxSize > 0 && s.Log.MaxSize < minLogSize {
		return invalid("size of a log file", fmt.Sprint(s.Log.MaxSize), fmt.Sprintf("it is in bytes; use at least %d, or 0 for 10 MiB", minLogSize))
	}
	if s.Log.MaxFiles < 0 || s.Log.MaxFiles > maxLogFiles {
		return invalid("number of log files", fmt.Sprint(s.Log.MaxFiles), fmt.Sprintf("use 1 to %d, or 0 for 3", maxLogFiles))
	}
	return nil
}

func checkSecurity(s Spec) error {
	for _, c := range slices.Concat(s.CapAdd, s.CapDrop) {
		if _, ok := capability(c); !ok {
			return invalid("capability", c, "use names as of capabilities(7), such as NET_ADMIN, or ALL")
		}
	}
	if len(s.Seccomp) > maxProfile {
		return fmt.Errorf("%w seccomp profile: %d bytes are more than %d", errs.ErrInvalid, len(s.Seccomp), maxProfile)
	}
	if s.Seccomp != "" && s.Seccomp != Unconfined && !json.Valid([]byte(s.Seccomp)) {
		return invalid("seccomp profile", clip(s.Seccomp), "use unconfined, the JSON of a profile, or nothing for the default one")
	}
	if s.OOMScoreAdj < -1000 || s.OOMScoreAdj > 1000 {
		return invalid("OOM score", fmt.Sprint(s.OOMScoreAdj), "use -1000 to 1000")
	}
	return nil
}

func checkLife(s Spec) error {
	if s.StopSignal != "" {
		if err := CheckSignal(s.StopSignal); err != nil {
			return err
		}
	}
	if err := s.Restart.validate(); err != nil {
		return err
	}
	if s.AutoRemove && s.Restart.restarts() {
		return fmt.Errorf("%w: a container that is removed at its end cannot have the restart policy %s: choose one", errs.ErrInvalid, s.Restart.Name)
	}
	return s.Health.validate()
}

func validateStrings(all []string) error {
	if len(all) > maxArgs {
		return fmt.Errorf("%w: %d arguments and variables are more than %d", errs.ErrInvalid, len(all), maxArgs)
	}
	total := 0
	for _, v := range all {
		if strings.ContainsRune(v, 0) {
			return invalid("string", clip(v), "a NUL byte cannot be passed to a process")
		}
		if len(v) > maxArgBytes {
			return fmt.Errorf("%w: a string of %d bytes is longer than %d", errs.ErrInvalid, len(v), maxArgBytes)
		}
		total += len(v)
	}
	if total > maxAllBytes {
		return fmt.Errorf("%w: arguments and variables of %d bytes together are more than %d", errs.ErrInvalid, total, maxAllBytes)
	}
	return nil
}

// clip bounds what an error quotes.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

func invalid(field, value, fix string) error {
	return fmt.Errorf("%w %s %q: %s", errs.ErrInvalid, field, value, fix)
}
