package container

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// defaultPath is the PATH of a container whose image sets none, as Docker has it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// compile joins a spec and its image's config into the agent's request. It is pure.
func compile(id string, s Spec, cfg ocispec.ImageConfig, layers []api.Layer) (api.CreateRequest, error) {
	args, err := command(s, cfg)
	if err != nil {
		return api.CreateRequest{}, err
	}
	env := mergeEnv([]string{defaultPath}, cfg.Env, s.Env)
	if s.TTY && !hasEnv(env, "TERM") {
		env = append(env, "TERM=xterm")
	}
	req := api.CreateRequest{
		ID:       id,
		Layers:   layers,
		Hostname: first(s.Hostname, id[:12]),
		Process: api.Process{
			Args:            args,
			Env:             env,
			Cwd:             first(s.WorkingDir, cfg.WorkingDir, "/"),
			User:            first(s.User, cfg.User),
			Groups:          s.Groups,
			TTY:             s.TTY,
			Stdin:           s.Stdin,
			Capabilities:    capabilities(s.CapAdd, s.CapDrop),
			NoNewPrivileges: s.NoNewPrivileges,
			OOMScoreAdj:     s.OOMScoreAdj,
		},
		Resources:  s.Resources.compile(),
		ReadOnly:   s.ReadOnly,
		ShmSize:    s.ShmSize,
		Sysctls:    s.Sysctls,
		Init:       s.Init,
		Privileged: s.Privileged,
		Log:        api.LogLimits(s.Log),
	}
	if s.Privileged {
		req.Process.Capabilities = allCapabilities()
	}
	if !strings.HasPrefix(req.Process.Cwd, "/") {
		req.Process.Cwd = "/" + req.Process.Cwd
	}
	if err := compileLists(&req, s); err != nil {
		return api.CreateRequest{}, err
	}
	// The image's config is foreign input as well: hold the whole to the same limits.
	return req, validateStrings(slices.Concat(args, env, []string{req.Process.Cwd, req.Process.User}))
}

func compileLists(req *api.CreateRequest, s Spec) error {
	for _, u := range s.Ulimits {
		r, err := u.compile()
		if err != nil {
			return err
		}
		req.Process.Rlimits = append(req.Process.Rlimits, r)
	}
	for _, t := range s.Tmpfs {
		req.Tmpfs = append(req.Tmpfs, api.Tmpfs(t))
	}
	for _, h := range s.ExtraHosts {
		host, err := parseHost(h)
		if err != nil {
			return err
		}
		req.ExtraHosts = append(req.ExtraHosts, host)
	}
	return nil
}

// command returns entrypoint and command together.
func command(s Spec, cfg ocispec.ImageConfig) ([]string, error) {
	entry, cmd := cfg.Entrypoint, cfg.Cmd
	if s.Entrypoint != nil {
		entry, cmd = s.Entrypoint, nil // as Docker: a new entrypoint drops the image's command
	}
	if len(s.Args) > 0 {
		cmd = s.Args
	}
	args := slices.Concat(entry, cmd)
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: image %s names no command: give one", errs.ErrInvalid, s.Image)
	}
	if args[0] == "" {
		return nil, fmt.Errorf("%w: the first argument, the command, is empty", errs.ErrInvalid)
	}
	return args, nil
}

// mergeEnv joins lists of KEY=value. A later list wins; in it KEY alone removes. Order is that of first appearance.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := make(map[string]int)
	for _, list := range lists {
		for _, e := range list {
			k, _, set := strings.Cut(e, "=")
			i, known := at[k]
			switch {
			case k == "":
			case !set && known:
				out[i] = ""
				delete(at, k)
			case !set:
			case known:
				out[i] = e
			default:
				at[k] = len(out)
				out = append(out, e)
			}
		}
	}
	return slices.DeleteFunc(out, func(e string) bool { return e == "" })
}

func hasEnv(env []string, key string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
}

func first(vs ...string) string {
	for _, v := range vs {
		if v != "" {
			return v
		}
	}
	return ""
}

// mergeLabels returns the image's labels with those of the spec over them.
func mergeLabels(img, spec map[string]string) map[string]string {
	out := make(map[string]string, len(img)+len(spec))
	maps.Copy(out, img)
	maps.Copy(out, spec)
	return out
}
