// Package container keeps the containers of a Runtime: their records, their states, and the compilation of what a
// caller asks for into the request that the agent carries out.
package container

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Spec is what a caller asks for.
type Spec struct {
	Name       string
	Image      string
	Entrypoint []string
	Args       []string
	Env        []string
	WorkingDir string
	User       string
	Hostname   string
	TTY        bool
	Stdin      bool
	StopSignal string
	Labels     map[string]string
	AutoRemove bool
}

var (
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)
)

// limits of one spec; the agent's request must fit into one frame.
const (
	maxArgs     = 4096
	maxArgBytes = 128 << 10 // what Linux takes for one string of argv or envp
	maxAllBytes = 512 << 10
)

// Validate checks what can be checked without the image.
func (s Spec) Validate() error {
	if s.Name != "" && !namePattern.MatchString(s.Name) {
		return invalid("name", s.Name, "use 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit")
	}
	if s.Image == "" {
		return invalid("image", s.Image, "name the image to run")
	}
	if s.Hostname != "" && !hostPattern.MatchString(s.Hostname) {
		return invalid("hostname", s.Hostname, "use 1 to 63 letters, digits, '.' and '-'")
	}
	if s.WorkingDir != "" && !strings.HasPrefix(s.WorkingDir, "/") {
		return invalid("working directory", s.WorkingDir, "use an absolute path")
	}
	for _, e := range s.Env {
		if k, _, _ := strings.Cut(e, "="); k == "" {
			return invalid("environment variable", e, "use KEY=value, or KEY alone to remove what the image sets")
		}
	}
	return validateStrings(slices.Concat(s.Entrypoint, s.Args, s.Env, []string{s.WorkingDir, s.User, s.StopSignal}))
}

func validateStrings(all []string) error {
	if len(all) > maxArgs {
		return fmt.Errorf("%w: %d arguments and variables are more than %d", errs.ErrInvalid, len(all), maxArgs)
	}
	total := 0
	for _, v := range all {
		if strings.ContainsRune(v, 0) {
			return invalid("string", v, "a NUL byte cannot be passed to a process")
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

func invalid(field, value, fix string) error {
	return fmt.Errorf("%w %s %q: %s", errs.ErrInvalid, field, value, fix)
}

// defaultPath is the PATH of a container whose image sets none, as Docker has it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// compile joins a spec and its image's config into the agent's request. It is pure.
func compile(id string, s Spec, cfg ocispec.ImageConfig, layers []api.Layer) (api.CreateRequest, error) {
	entry, cmd := cfg.Entrypoint, cfg.Cmd
	if s.Entrypoint != nil {
		entry, cmd = s.Entrypoint, nil // as Docker: a new entrypoint drops the image's command
	}
	if len(s.Args) > 0 {
		cmd = s.Args
	}
	args := slices.Concat(entry, cmd)
	if len(args) == 0 {
		return api.CreateRequest{}, fmt.Errorf("%w: image %s names no command: give one", errs.ErrInvalid, s.Image)
	}
	if args[0] == "" {
		return api.CreateRequest{}, fmt.Errorf("%w: the first argument, the command, is empty", errs.ErrInvalid)
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
			Args:  args,
			Env:   env,
			Cwd:   first(s.WorkingDir, cfg.WorkingDir, "/"),
			User:  first(s.User, cfg.User),
			TTY:   s.TTY,
			Stdin: s.Stdin,
		},
	}
	if !strings.HasPrefix(req.Process.Cwd, "/") {
		req.Process.Cwd = "/" + req.Process.Cwd
	}
	// The image's config is foreign input as well: hold the whole to the same limits.
	return req, validateStrings(slices.Concat(args, env, []string{req.Process.Cwd, req.Process.User}))
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
