package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/arcboxlabs/arcbox-go"
)

// runFlags are the flags of arcbox run and create.
type runFlags struct {
	machine, name, hostname, workdir, user, entrypoint, stopSignal, pull string
	env, labels                                                          []string
	rm, interactive, tty                                                 bool
	stopTimeout                                                          time.Duration
	restart                                                              string

	capAdd, capDrop, securityOpt, tmpfs, volumes, mounts, ulimits, sysctls, hosts, groups []string
	readOnly, init, privileged                                                            bool
	shmSize                                                                               string
	oomScoreAdj                                                                           int
	limits                                                                                limitFlags
	net                                                                                   networkFlags
	health                                                                                healthFlags
}

type healthFlags struct {
	cmd                                           string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.SetInterspersed(false) // what follows IMAGE belongs to the command
	fs.StringVar(&f.name, "name", "", "name of the container")
	fs.StringVar(&f.machine, "machine", "", "`name` of the machine to run in (default: the default one)")
	fs.StringVar(&f.hostname, "hostname", "", "host name in the container")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set `KEY=VALUE`, or KEY to this process's value")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "set the label `KEY=VALUE`")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fs.StringVarP(&f.user, "user", "u", "", "`user[:group]`, as names or numbers")
	fs.StringArrayVar(&f.groups, "group-add", nil, "one more `group` of the process")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "in place of the image's entrypoint")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks the process to end")
	fs.DurationVar(&f.stopTimeout, "stop-timeout", 0, "from that signal to KILL (default 10s)")
	fs.StringVar(&f.pull, "pull", "missing", "when to pull the image: always, missing or never")
	fs.BoolVar(&f.rm, "rm", false, "remove the container as soon as it has ended")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "connect stdin")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the container a terminal")
	fs.BoolVar(&f.init, "init", false, "run a PID 1 that reaps orphans and hands on signals")
	fs.StringVar(&f.restart, "restart", "no", "`policy`: no, always, unless-stopped or on-failure[:max]")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "a line of /etc/hosts as `name:ip`")
	f.limits.register(fs)
	f.registerSecurity(fs)
	f.health.register(fs)
}

func (f *runFlags) registerSecurity(fs *pflag.FlagSet) {
	fs.BoolVar(&f.privileged, "privileged", false, "all capabilities and devices, nothing masked, no seccomp")
	fs.BoolVar(&f.readOnly, "read-only", false, "let nobody write the root")
	fs.StringArrayVar(&f.capAdd, "cap-add", nil, "a `capability` over the default set, or ALL")
	fs.StringArrayVar(&f.capDrop, "cap-drop", nil, "a `capability` not to have, or ALL")
	fs.StringArrayVar(&f.securityOpt, "security-opt", nil, "seccomp=unconfined, seccomp=`FILE` or no-new-privileges")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "file system in memory as `PATH[:size=64m,mode=1777,exec]`")
	fs.StringArrayVar(&f.net.networks, "network", nil, "a `network`, none, machine, or container:NAME; may be repeated")
	fs.StringArrayVar(&f.net.aliases, "network-alias", nil, "one more `name` in the first network")
	fs.StringVar(&f.net.ip, "ip", "", "a free `address` of the first network")
	fs.StringArrayVarP(&f.net.publish, "publish", "p", nil, "publish a port as `[[IP:]HOST:]CONTAINER[/udp]`; of 127.0.0.1 without IP; or a socket as HOSTPATH:PATH")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount a volume or a directory, file or socket of the host: `[SOURCE:]TARGET[:ro]`")
	fs.StringArrayVar(&f.mounts, "mount", nil, "mount as `type=volume|bind|socket|tmpfs,source=SOURCE,target=TARGET[,readonly]`")
	fs.StringVar(&f.shmSize, "shm-size", "", "`size` of /dev/shm, as 64m")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of each process as `NAME=SOFT[:HARD]`; -1 is none")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "set `KEY=VALUE` in the container's namespaces")
	fs.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "-1000 to 1000: higher is killed earlier when memory lacks")
}

func (h *healthFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&h.cmd, "health-cmd", "", "`script` for /bin/sh that ends with 0 where all is well")
	fs.DurationVar(&h.interval, "health-interval", 0, "from the end of a check to the next (default 30s)")
	fs.DurationVar(&h.timeout, "health-timeout", 0, "of one check (default 30s)")
	fs.DurationVar(&h.startPeriod, "health-start-period", 0, "after the start, in which failures do not count")
	fs.DurationVar(&h.startInterval, "health-start-interval", 0, "in place of the interval within that period (default 5s)")
	fs.IntVar(&h.retries, "health-retries", 0, "failures in a row that make the container unhealthy (default 3)")
	fs.BoolVar(&h.none, "no-healthcheck", false, "without the image's check")
}

// check is the health check that the flags ask for; nil where none of them is given.
func (h *healthFlags) check() *arcbox.HealthCheck {
	if *h == (healthFlags{}) {
		return nil
	}
	check := &arcbox.HealthCheck{
		Interval: h.interval, Timeout: h.timeout, StartPeriod: h.startPeriod, StartInterval: h.startInterval, Retries: h.retries,
	}
	switch {
	case h.none:
		check.Test = []string{"NONE"}
	case h.cmd != "":
		check.Test = []string{"CMD-SHELL", h.cmd}
	}
	return check
}

// spec describes the container that the flags and arguments ask for. lookup finds variables of this process.
func (f *runFlags) spec(args []string, lookup func(string) (string, bool)) (arcbox.ContainerSpec, error) {
	s := arcbox.ContainerSpec{
		Name: f.name, Machine: f.machine, Image: args[0], Args: args[1:], WorkingDir: f.workdir, User: f.user, Groups: f.groups, Hostname: f.hostname,
		TTY: f.tty, Stdin: f.interactive, StopSignal: f.stopSignal, StopTimeout: f.stopTimeout, AutoRemove: f.rm, Init: f.init,
		ExtraHosts: f.hosts, CapAdd: f.capAdd, CapDrop: f.capDrop, ReadOnly: f.readOnly, Privileged: f.privileged,
		OOMScoreAdj: f.oomScoreAdj, Health: f.health.check(),
	}
	if f.entrypoint != "" {
		s.Entrypoint = []string{f.entrypoint}
	}
	switch f.pull {
	case "missing", "always", "never":
	default:
		return s, fmt.Errorf("flag --pull %q: use always, missing or never", f.pull)
	}
	var err error
	if s.Env, err = environment(f.env, lookup); err != nil {
		return s, err
	}
	if s.Labels, err = pairs("--label", f.labels, true); err != nil {
		return s, err
	}
	if s.Sysctls, err = pairs("--sysctl", f.sysctls, false); err != nil {
		return s, err
	}
	if s.Restart, err = restartPolicy(f.restart); err != nil {
		return s, err
	}
	if s.Resources, err = f.limits.resources(); err != nil {
		return s, err
	}
	if s.ShmSize, err = size("--shm-size", f.shmSize); err != nil {
		return s, err
	}
	for _, text := range f.tmpfs {
		t, err := tmpfs(text)
		if err != nil {
			return s, err
		}
		s.Tmpfs = append(s.Tmpfs, t)
	}
	if err := f.net.apply(&s); err != nil {
		return s, err
	}
	for _, text := range f.volumes {
		m, err := volumeFlag(text)
		if err != nil {
			return s, err
		}
		s.Mounts = append(s.Mounts, m)
	}
	for _, text := range f.mounts {
		if err := mountFlag(text, &s); err != nil {
			return s, err
		}
	}
	for _, text := range f.ulimits {
		u, err := ulimit(text)
		if err != nil {
			return s, err
		}
		s.Ulimits = append(s.Ulimits, u)
	}
	return s, securityOptions(&s, f.securityOpt)
}

// environment resolves variables that are named only.
func environment(list []string, lookup func(string) (string, bool)) ([]string, error) {
	var env []string
	for _, e := range list {
		key, _, set := strings.Cut(e, "=")
		if key == "" {
			return nil, fmt.Errorf("flag --env %q: use KEY=VALUE or KEY", e)
		}
		if !set {
			value, ok := lookup(key)
			if !ok {
				continue
			}
			e = key + "=" + value
		}
		env = append(env, e)
	}
	return env, nil
}
