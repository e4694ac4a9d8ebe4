package engine

import (
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The limits of a request to create a container.
const (
	MaxID     = 128       // characters of a container's id
	MaxLayers = 127       // as many as other container engines allow
	MaxSerial = 20        // characters of a layer's serial number
	MaxArgs   = 4096      // arguments, and as many environment variables
	MaxArg    = 128 << 10 // bytes of one of them: what the kernel takes
	MaxFiles  = 1000      // of a container's log
)

// CheckID returns ErrInvalid for what is not a container's id: a letter or digit, then letters, digits, '_', '.', '-',
// at most MaxID.
func CheckID(id string) error { return checkID("container", id) }

func checkID(of, id string) error {
	ok := id != "" && len(id) <= MaxID && alphanumeric(id[0])
	for i := 0; ok && i < len(id); i++ {
		ok = alphanumeric(id[i]) || strings.IndexByte("_.-", id[i]) >= 0
	}
	if !ok {
		return fmt.Errorf("%s id %.150q: %w: want a letter or digit, then at most %d letters, digits, '_', '.' and '-'", of, id, errs.ErrInvalid, MaxID-1)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// CheckCreate returns ErrInvalid, with the reason, for a request that no backend could honour.
func CheckCreate(req api.CreateRequest) error {
	if err := CheckID(req.ID); err != nil {
		return err
	}
	if err := checkLayers(req.Layers); err != nil {
		return fmt.Errorf("create %s: %w", req.ID, err)
	}
	if h := req.Hostname; len(h) > 64 || strings.ContainsAny(h, "\x00\n\t /") {
		return fmt.Errorf("create %s: host name %.80q: %w", req.ID, h, errs.ErrInvalid)
	}
	for _, err := range []error{checkProcess(req.Process), CheckResources(req.Resources), checkOptions(req), checkNetwork(req.Network)} {
		if err != nil {
			return fmt.Errorf("create %s: %w", req.ID, err)
		}
	}
	return nil
}

func checkLayers(layers []api.Layer) error {
	if n := len(layers); n == 0 || n > MaxLayers {
		return fmt.Errorf("%w: %d layers, want 1 to %d", errs.ErrInvalid, n, MaxLayers)
	}
	for _, l := range layers {
		ok := l.Serial != "" && len(l.Serial) <= MaxSerial
		for i := 0; ok && i < len(l.Serial); i++ {
			ok = alphanumeric(l.Serial[i]) || l.Serial[i] == '-' || l.Serial[i] == '_'
		}
		if !ok {
			return fmt.Errorf("layer serial %.40q: %w", l.Serial, errs.ErrInvalid)
		}
	}
	return nil
}

// CheckExec returns ErrInvalid, with the reason, for a request that no backend could honour.
func CheckExec(req api.ExecRequest) error {
	if err := checkID("exec", req.ExecID); err != nil {
		return err
	}
	err := checkProcess(req.Process)
	if err == nil && req.ID == "" {
		err = checkLayers(req.Layers)
	}
	if err != nil {
		return fmt.Errorf("exec %s: %w", req.ExecID, err)
	}
	return nil
}

func checkProcess(p api.Process) error {
	if len(p.Args) == 0 {
		return fmt.Errorf("process: %w: no arguments: name a command", errs.ErrInvalid)
	}
	for what, list := range map[string][]string{"argument": p.Args, "environment variable": p.Env} {
		if len(list) > MaxArgs {
			return fmt.Errorf("process: %w: %d of kind %s, want at most %d", errs.ErrInvalid, len(list), what, MaxArgs)
		}
		for _, s := range list {
			if len(s) >= MaxArg || strings.IndexByte(s, 0) >= 0 {
				return fmt.Errorf("process: %w %s %.40q: it has a zero byte or is longer than %d bytes", errs.ErrInvalid, what, s, MaxArg)
			}
		}
	}
	for _, e := range p.Env {
		if i := strings.IndexByte(e, '='); i <= 0 {
			return fmt.Errorf("process: %w environment variable %.40q: want NAME=value", errs.ErrInvalid, e)
		}
	}
	if c := p.Cwd; c != "" && (c[0] != '/' || len(c) >= 4096 || strings.IndexByte(c, 0) >= 0) {
		return fmt.Errorf("process: %w working directory %.80q: want an absolute path", errs.ErrInvalid, c)
	}
	if len(p.User) > 256 || strings.ContainsAny(p.User, "\x00\n") {
		return fmt.Errorf("process: %w user %.80q", errs.ErrInvalid, p.User)
	}
	return checkLimits(p)
}
