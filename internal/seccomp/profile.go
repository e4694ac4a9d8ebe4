// Package seccomp compiles seccomp profiles, in the JSON form of Docker, into the filter programs that the kernel takes.
//
// A program is made on the host for the architecture of the guest, so nothing of it depends on the host's own. It covers
// the guest's architecture and those older ones of the same processors that the profile names and that have a table here:
// 32-bit x86 on amd64 and 32-bit ARM on arm64. System calls of any other get the profile's default action.
//
// Default.json is the profile of github.com/moby/profiles/seccomp v0.2.4 (Apache-2.0), unchanged. The package itself
// builds its profile on Linux only.
package seccomp

import (
	_ "embed" // the default profile
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

//go:embed default.json
var defaultProfile []byte

// MaxProfile is the largest profile in bytes that Compile takes.
const MaxProfile = 1 << 20

// Default compiles Docker's default profile for a guest's architecture, amd64 or arm64, and a process with the given
// capabilities: each one unlocks the calls that are of use with it. Names are as in CAP_SYS_ADMIN; nil and empty are
// none. The result is the program's bytes: struct sock_filter, 8 bytes each, little endian. An architecture without a
// table is ErrUnsupported.
func Default(arch string, caps []string) ([]byte, error) { return Compile(arch, caps, defaultProfile) }

// Compile compiles a profile in Docker's JSON form; runtime-spec's is a part of it. The rest is as of Default. What the
// kernel's version decides in a profile counts as if the kernel were new. A profile that does not parse, names an unknown
// action or operator, or has an unconditional rule for one call twice with different actions is ErrInvalid. Names of calls
// that the architecture does not have are left out. SCMP_ACT_NOTIFY, which needs a listener, is ErrUnsupported.
func Compile(arch string, caps []string, profileJSON []byte) ([]byte, error) {
	if len(profileJSON) > MaxProfile {
		return nil, fmt.Errorf("seccomp profile: %w: %d bytes, want at most %d", errs.ErrInvalid, len(profileJSON), MaxProfile)
	}
	var p profile
	if err := json.Unmarshal(profileJSON, &p); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", errs.ErrInvalid, err)
	}
	b, err := p.compile(arch, caps)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return b, nil
}

// profile is a profile in JSON.
type profile struct {
	DefaultAction   string   `json:"defaultAction"`
	DefaultErrnoRet *uint    `json:"defaultErrnoRet"`
	Architectures   []string `json:"architectures"`
	ArchMap         []struct {
		Architecture     string   `json:"architecture"`
		SubArchitectures []string `json:"subArchitectures"`
	} `json:"archMap"`
	ListenerPath string `json:"listenerPath"`
	Syscalls     []rule `json:"syscalls"`
}

// rule is an action for some calls.
type rule struct {
	Name     string   `json:"name"` // old form of Names
	Names    []string `json:"names"`
	Action   string   `json:"action"`
	ErrnoRet *uint    `json:"errnoRet"`
	Args     []arg    `json:"args"`
	Includes filter   `json:"includes"`
	Excludes filter   `json:"excludes"`
}

// arg is a condition on an argument of a call.
type arg struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

// filter says for whom a rule is.
type filter struct {
	Caps   []string `json:"caps"`
	Arches []string `json:"arches"`
}

// applies tells whether a rule is for a process on arch with caps. As Docker has it: all capabilities that a rule
// includes must be there, none that it excludes, and the architecture is the guest's own, whatever ABI a program uses.
func (r *rule) applies(arch string, caps []string) bool {
	has := func(c string) bool { return slices.Contains(caps, c) }
	if len(r.Includes.Arches) > 0 && !slices.Contains(r.Includes.Arches, arch) {
		return false
	}
	for _, c := range r.Includes.Caps {
		if !has(c) {
			return false
		}
	}
	return !slices.Contains(r.Excludes.Arches, arch) && !slices.ContainsFunc(r.Excludes.Caps, has)
}

// The kernel's actions.
const (
	actKillProcess = 0x80000000
	actKillThread  = 0x00000000
	actTrap        = 0x00030000
	actErrno       = 0x00050000
	actTrace       = 0x7ff00000
	actLog         = 0x7ffc0000
	actAllow       = 0x7fff0000
)

const (
	ePerm    = 1    // EPERM of Linux
	maxErrno = 4095 // the kernel cuts larger ones
)

// action turns the name of an action into the kernel's number.
func action(name string, errno *uint) (uint32, error) {
	data := uint32(ePerm)
	if errno != nil {
		if *errno > maxErrno {
			return 0, fmt.Errorf("errnoRet %d: %w: want at most %d", *errno, errs.ErrInvalid, maxErrno)
		}
		data = uint32(*errno)
	}
	switch name {
	case "SCMP_ACT_ALLOW":
		return actAllow, nil
	case "SCMP_ACT_ERRNO":
		return actErrno | data, nil
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		return actKillThread, nil
	case "SCMP_ACT_KILL_PROCESS":
		return actKillProcess, nil
	case "SCMP_ACT_TRAP":
		return actTrap, nil
	case "SCMP_ACT_TRACE":
		return actTrace | data, nil
	case "SCMP_ACT_LOG":
		return actLog, nil
	case "SCMP_ACT_NOTIFY":
		return 0, fmt.Errorf("action %s: %w: there is no listener in the guest", name, errs.ErrUnsupported)
	}
	return 0, fmt.Errorf("action %.60q: %w: want SCMP_ACT_ALLOW, _ERRNO, _KILL, _KILL_PROCESS, _KILL_THREAD, _TRAP, _TRACE or _LOG", name, errs.ErrInvalid)
}

// subArches returns the other architectures that the profile covers beside the guest's, in the names of the profile.
func (p *profile) subArches(native string) []string {
	list := slices.Clone(p.Architectures)
	for _, a := range p.ArchMap {
		if a.Architecture == native {
			list = append(list, a.SubArchitectures...)
		}
	}
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(a string) bool { return a == native })
}

// names returns the calls that a rule is about.
func (r *rule) names() ([]string, error) {
	if r.Name == "" {
		return r.Names, nil
	}
	if len(r.Names) > 0 {
		return nil, fmt.Errorf("rule for %.60s: %w: it has both name and names", strings.Join(r.Names, " "), errs.ErrInvalid)
	}
	return []string{r.Name}, nil
}
