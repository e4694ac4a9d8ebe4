package boot

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	agentName    = "arcbox-agent"
	agentLayout  = "agent 1"
	agentPackage = "./agent/cmd/arcbox-agent"
	modulePath   = "github.com/arcboxlabs/arcbox-go"
)

// maxAgent bounds an agent given by the caller in bytes.
const maxAgent = 256 << 20

// agent returns the entry of the agent's binary.
func (r *resolver) agent(ctx context.Context) (*entry, error) {
	if r.cfg.Agent != "" {
		return r.agentFromFile(ctx)
	}
	src, err := findAgentSource(ctx)
	if err != nil {
		return nil, err
	}
	return r.buildAgent(ctx, src)
}

// agentFromFile copies the agent Config names, under a key of its path, size and time.
func (r *resolver) agentFromFile(ctx context.Context) (*entry, error) {
	p, err := filepath.Abs(r.cfg.Agent)
	if err != nil {
		return nil, fmt.Errorf("find agent: %w", err)
	}
	info, err := os.Stat(p)
	if err != nil {
		return nil, fmt.Errorf("find agent: %w", notFound(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxAgent {
		return nil, fmt.Errorf("find agent: %w: %s is no program", errs.ErrInvalid, p)
	}
	key := r.cfg.Arch + "-" + digest(agentLayout, "file", p, fmt.Sprint(info.Size()), fmt.Sprint(info.ModTime().UnixNano()))[:32]
	return r.store.obtain(ctx, kindAgent, key, func(ctx context.Context, dir string) (any, error) {
		in, err := os.Open(p)
		if err != nil {
			return nil, fmt.Errorf("open agent: %w", notFound(err))
		}
		defer func() { _ = in.Close() }()
		dst := filepath.Join(dir, agentName)
		if err := writeFile(dst, info.Size(), &ctxReader{ctx, in}); err != nil {
			return nil, fmt.Errorf("copy agent: %w", err)
		}
		return nil, checkAgent(dst, r.cfg.Arch)
	})
}

// checkAgent tells whether a file is a static Linux program for arch: the initramfs has no loader.
func checkAgent(p, arch string) error {
	f, err := elf.Open(p)
	if err != nil {
		return fmt.Errorf("check agent: %w: no ELF file: %w", errs.ErrInvalid, err)
	}
	defer func() { _ = f.Close() }()
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	if f.Machine != machine || f.Class != elf.ELFCLASS64 {
		return fmt.Errorf("check agent: %w: it is for %s, not for %s", errs.ErrInvalid, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("check agent: %w: it is linked dynamically; build it with CGO_ENABLED=0", errs.ErrInvalid)
		}
	}
	return nil
}

// agentSource is where the source of the agent is: a directory, or a released version that go fetches.
type agentSource struct {
	dir string // "" for a released version

	path, version, sum string
}

// findAgentSource finds the source this program was built from. A program that was built from a released module version
// gets that version. Otherwise the directory is the one the compiler recorded, or, where the program was built with
// -trimpath or has been moved, the one of the Go module in the working directory.
func findAgentSource(ctx context.Context) (agentSource, error) {
	if info, ok := debug.ReadBuildInfo(); ok {
		if m := findModule(info); m != nil && m.Sum != "" {
			return agentSource{path: m.Path, version: m.Version, sum: m.Sum}, nil
		}
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		if dir := filepath.Dir(filepath.Dir(file)); hasAgent(dir) {
			return agentSource{dir: dir}, nil
		}
	}
	tool, err := goTool(usualGo)
	if err != nil {
		return agentSource{}, err
	}
	out, err := child{path: tool, args: []string{"list", "-m", "-f", "{{.Dir}}", modulePath}}.run(ctx)
	if dir := strings.TrimSpace(string(out)); err == nil && hasAgent(dir) {
		return agentSource{dir: dir}, nil
	}
	if ctx.Err() != nil {
		return agentSource{}, err
	}
	return agentSource{}, fmt.Errorf("build agent: %w: its source is not where this program was built, and not a module of the working directory; "+
		"build it with CGO_ENABLED=0 GOOS=linux go build %s/agent/cmd/arcbox-agent and name the file in Agent", errs.ErrUnavailable, modulePath)
}

// findModule returns the module of this library in a program, as it was replaced.
func findModule(info *debug.BuildInfo) *debug.Module {
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path == modulePath {
			if m.Replace != nil {
				return m.Replace
			}
			return m
		}
	}
	return nil
}

func hasAgent(dir string) bool {
	if dir == "" {
		return false
	}
	info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(agentPackage)))
	return err == nil && info.IsDir()
}

// usualGo is where Go's own packages install it. Services and graphical sessions often lack it on their PATH.
const usualGo = "/usr/local/go/bin/go"

// goTool returns the path of the go command: that of the PATH, or else the usual one if it exists.
func goTool(usual string) (string, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		tool, err = exec.LookPath(usual)
	}
	if err != nil {
		return "", fmt.Errorf("build agent: %w: there is no Go toolchain; install Go, or build the agent elsewhere with CGO_ENABLED=0 GOOS=linux "+
			"go build %s/agent/cmd/arcbox-agent and name the file in Agent", errs.ErrUnavailable, modulePath)
	}
	return tool, nil
}

// key names the agent of a source. For a directory that is a hash over all that goes into the build, which takes a few
// milliseconds, so nothing is compiled as long as nothing changed.
func (s agentSource) key(arch string) (string, error) {
	parts := []string{agentLayout, arch, runtime.Version(), s.path, s.version, s.sum}
	if s.dir != "" {
		sum, err := hashSource(s.dir)
		if err != nil {
			return "", fmt.Errorf("read source of agent: %w", err)
		}
		parts = append(parts, sum)
	}
	return arch + "-" + digest(parts...)[:32], nil
}

// hashSource hashes go.mod, go.sum and everything below agent and internal but tests: what the agent may import of this
// module. Files count too, for those that are embedded.
func hashSource(dir string) (string, error) {
	h := sha256.New()
	add := func(p string) error {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		_, err = fmt.Fprintf(h, "%q %x\n", filepath.ToSlash(rel), sum)
		return err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		if err := add(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	for _, top := range []string{"agent", "internal"} {
		err := filepath.WalkDir(filepath.Join(dir, top), func(p string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")):
				return fs.SkipDir
			case !d.Type().IsRegular() || strings.HasSuffix(d.Name(), "_test.go") || strings.HasPrefix(d.Name(), "."):
				return nil
			}
			return add(p)
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (r *resolver) buildAgent(ctx context.Context, src agentSource) (*entry, error) {
	key, err := src.key(r.cfg.Arch)
	if err != nil {
		return nil, err
	}
	return r.store.obtain(ctx, kindAgent, key, func(ctx context.Context, dir string) (any, error) {
		r.rep.report(StepAgent, 0, 1)
		tool, err := goTool(usualGo)
		if err != nil {
			return nil, err
		}
		if src.dir == "" {
			if r.cfg.Offline {
				return nil, fmt.Errorf("build agent: %w", errOffline())
			}
			if src.dir, err = moduleDir(ctx, tool, src); err != nil {
				return nil, err
			}
		}
		env := []string{
			"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + r.cfg.Arch, "GOAMD64=v1", "GOARM64=v8.0",
			"GOFLAGS=-mod=readonly", "GOWORK=off", "GOEXPERIMENT=",
		}
		if r.cfg.Offline {
			env = append(env, "GOPROXY=off", "GOTOOLCHAIN=local")
		}
		if _, err := os.UserCacheDir(); err != nil {
			env = append(env, "GOCACHE="+filepath.Join(r.store.dir, "go-build")) // go has no other place without a home
		}
		dst := filepath.Join(dir, agentName)
		c := child{path: tool, dir: src.dir, env: env, args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dst, agentPackage}}
		if _, err := c.run(ctx); err != nil {
			return nil, fmt.Errorf("build agent: %w", err)
		}
		if err := checkAgent(dst, r.cfg.Arch); err != nil {
			return nil, err
		}
		r.rep.report(StepAgent, 1, 1)
		return nil, nil
	})
}

// moduleDir returns the directory of a released version, which go fetches and verifies.
func moduleDir(ctx context.Context, tool string, src agentSource) (string, error) {
	out, err := child{path: tool, env: []string{"GOFLAGS=-mod=mod", "GOWORK=off"}, args: []string{"mod", "download", "-json", src.path + "@" + src.version}}.run(ctx)
	var m struct{ Dir, Sum, Error string }
	if jerr := json.Unmarshal(out, &m); err == nil && jerr != nil {
		err = jerr
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("fetch source of agent: %w", err)
	case m.Sum != src.sum:
		return "", fmt.Errorf("fetch source of agent: %w: %s@%s has the sum %s, and this program was built from %s", errs.ErrCorrupt, src.path, src.version, m.Sum, src.sum)
	}
	return m.Dir, nil
}
