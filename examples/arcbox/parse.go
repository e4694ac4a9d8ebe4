package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/arcboxlabs/arcbox-go"
)

// limitFlags are the limits of a container.
type limitFlags struct {
	memory, swap, cpuset string
	cpus                 float64
	shares               uint64
	pids                 int64
	ioWeight             uint16
}

func (l *limitFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&l.memory, "memory-limit", "m", "", "`size` of the container's memory, as 128m; -1 is none")
	fs.StringVar(&l.swap, "memory-swap-limit", "", "`size` of memory and swap together; -1 is none")
	fs.Float64Var(&l.cpus, "cpus-limit", 0, "processors' worth of time, as 1.5; -1 is no limit")
	fs.Uint64Var(&l.shares, "cpu-shares", 0, "weight among the containers that want the processors")
	fs.StringVar(&l.cpuset, "cpuset-cpus", "", "the `processors` to use, as 0-2,4")
	fs.Int64Var(&l.pids, "pids-limit", 0, "processes and threads; -1 is no limit")
	fs.Uint16Var(&l.ioWeight, "io-weight", 0, "weight of block I/O, 10 to 1000")
}

func (l *limitFlags) resources() (arcbox.Resources, error) {
	r := arcbox.Resources{CPUs: l.cpus, CPUShares: l.shares, CPUSet: l.cpuset, PIDs: l.pids, IOWeight: l.ioWeight}
	var err error
	if r.Memory, err = size("--memory-limit", l.memory); err != nil {
		return r, err
	}
	r.MemorySwap, err = size("--memory-swap-limit", l.swap)
	return r, err
}

// size reads a number of bytes, as 64m or 1.5g; "" is 0 and "-1" is -1. Units are powers of 1024.
func size(flag, text string) (int64, error) {
	switch text {
	case "":
		return 0, nil
	case "-1":
		return -1, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(text), "b"), "i")
	unit := 1.0
	if i := len(number) - 1; i >= 0 {
		if n := strings.IndexByte("kmgt", number[i]); n >= 0 {
			number, unit = number[:i], float64(int64(1024)<<(10*n))
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v >= 0) || v*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("flag %s %q: use a number of bytes, also with k, m, g or t", flag, text)
	}
	return int64(v * unit), nil
}

// pairs reads KEY=VALUE; a KEY alone is one without a value where that is allowed.
func pairs(flag string, list []string, alone bool) (map[string]string, error) {
	var m map[string]string
	for _, text := range list {
		key, value, set := strings.Cut(text, "=")
		if key == "" || !set && !alone {
			return nil, fmt.Errorf("flag %s %q: use KEY=VALUE", flag, text)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = value
	}
	return m, nil
}

// restartPolicy reads a policy as docker has it.
func restartPolicy(text string) (arcbox.RestartPolicy, error) {
	name, number, set := strings.Cut(text, ":")
	p := arcbox.RestartPolicy{Name: arcbox.RestartName(name)}
	switch p.Name {
	case arcbox.RestartNo, "":
		p.Name = ""
	case arcbox.RestartAlways, arcbox.RestartUnlessStopped, arcbox.RestartOnFailure:
	default:
		return p, fmt.Errorf("flag --restart %q: use no, always, unless-stopped or on-failure[:max]", text)
	}
	if set {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || p.Name != arcbox.RestartOnFailure {
			return p, fmt.Errorf("flag --restart %q: only on-failure has a maximum, which is a number", text)
		}
		p.MaxRetries = n
	}
	return p, nil
}

// tmpfs reads PATH[:size=SIZE,mode=OCTAL,exec].
func tmpfs(text string) (arcbox.Tmpfs, error) {
	path, options, _ := strings.Cut(text, ":")
	t := arcbox.Tmpfs{Path: path}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "size":
			t.Size, err = size("--tmpfs", value)
		case "mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 32)
			t.Mode = uint32(mode)
		case "exec":
			t.Exec = true
		case "noexec", "rw", "nosuid", "nodev": // as it is
		default:
			err = fmt.Errorf("no option %q", key)
		}
		if err != nil {
			return t, fmt.Errorf("flag --tmpfs %q: %w: use PATH[:size=64m,mode=1777,exec]", text, err)
		}
	}
	return t, nil
}

// ulimit reads NAME=SOFT[:HARD].
func ulimit(text string) (arcbox.Ulimit, error) {
	name, value, _ := strings.Cut(text, "=")
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	u := arcbox.Ulimit{Name: name}
	var err, err2 error
	u.Soft, err = strconv.ParseInt(soft, 10, 64)
	u.Hard, err2 = strconv.ParseInt(hard, 10, 64)
	if name == "" || err != nil || err2 != nil {
		return u, fmt.Errorf("flag --ulimit %q: use NAME=SOFT[:HARD] with numbers, -1 for none", text)
	}
	return u, nil
}

// securityOptions puts what --security-opt says into a spec.
func securityOptions(s *arcbox.ContainerSpec, list []string) error {
	for _, text := range list {
		key, value, _ := strings.Cut(text, "=")
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			s.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
			s.NoNewPrivileges = false
		case key == "seccomp" && value == arcbox.SeccompUnconfined:
			s.Seccomp = value
		case key == "seccomp" && value != "":
			profile, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("flag --security-opt: read seccomp profile: %w", err)
			}
			s.Seccomp = string(profile)
		default:
			return fmt.Errorf("flag --security-opt %q: use seccomp=unconfined, seccomp=FILE or no-new-privileges", text)
		}
	}
	return nil
}
