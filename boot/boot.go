// Package boot finds, verifies, builds and caches what a machine boots from: a plain kernel and an initramfs with the
// agent and the kernel's modules.
//
// Resolve looks for the kernel in this order: the files Config names; the cache; the kernel package of Debian or Ubuntu
// through the system's apt, without root and without installing it; a pinned package by URL and SHA-256. The agent is
// built once per version with the Go toolchain, or taken from Config.
//
// The cache is a directory that any number of processes use at once. What it holds is whole or absent: everything is
// verified, written under a temporary name, synced and renamed, and of several processes that want the same thing one
// makes it while the others wait. The locks are the kernel's, so a process that dies holds up nobody.
package boot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Config says where boot assets come from and where they are kept. Everything but Dir may be zero.
type Config struct {
	// Dir is the cache directory, required. It is made with mode 0700. Processes of one user share it.
	Dir string
	// Arch is the architecture of the guest as GOARCH, "amd64" or "arm64". Zero is that of the program.
	Arch string

	// Kernel is a kernel file: bzImage or vmlinux for amd64; Image, compressed Image or EFI zboot for arm64. Zero lets
	// Resolve find one. Only one of Kernel, URL and Image may be set.
	Kernel string
	// Modules is the directory of Kernel's modules, like /lib/modules/6.1.0-56-cloud-amd64; its last element is taken for
	// the kernel's release. Zero together with Kernel means the kernel has all it needs built in.
	Modules string
	// URL is a Debian package with a kernel and its modules, and SHA256 its digest in hex, required with URL. It is
	// fetched by HTTP or HTTPS in place of what apt or the built-in list offer.
	URL, SHA256 string
	// Image is an OCI reference of a kernel bundle (see Bundle). The registry is asked once; from then on the cache
	// answers. A reference by digest is verified against it.
	Image string
	// Mirror is the base URL of a Debian mirror that has the packages of the built-in list, for example
	// "https://deb.debian.org". Zero is exactly that one.
	Mirror string
	// Offline forbids the network: what is neither named by a file nor in the cache is ErrUnavailable.
	Offline bool

	// Agent is a static Linux binary of the agent for Arch. Zero builds it with the Go toolchain.
	Agent string

	// Progress is told about work that takes time, by one goroutine at a time; it must not block for long. Zero is none.
	Progress func(Progress)
	// Logger gets decisions and repairs. Zero is silent.
	Logger *slog.Logger
}

// Progress is the state of one step. The last report of a step that succeeds has Done equal to Total.
type Progress struct {
	Step        Step
	Done, Total int64 // bytes, or 0 and 1 for a step of unknown length; Total is 0 as long as it is not known
}

// Step names a step of Resolve, as a verb and an object for people to read. Steps may overlap.
type Step string

// The steps. Each is reported only where it is needed: a Resolve from the cache reports none.
const (
	StepFind     Step = "find kernel"
	StepDownload Step = "download kernel"
	StepUnpack   Step = "unpack kernel"
	StepAgent    Step = "build agent"
	StepCompose  Step = "compose initramfs"
)

// Assets are what a machine boots from. The files stay as they are, since another kernel or agent gets other paths, and
// are kept for 30 days after the last Resolve that returned them.
type Assets struct {
	Arch      string // of the guest, as GOARCH
	Release   string // of the kernel, like "6.1.0-56-cloud-amd64"; "" where nothing tells
	Source    string // where the kernel came from, for people to read
	Kernel    string // path of the plain kernel: vmlinux with a PVH entry for amd64, Image for arm64
	Initramfs string // path of the initramfs, uncompressed
	Agent     string // path of the agent's executable, which is in the initramfs too
	Digest    string // SHA-256 in hex over the contents of both: equal digests boot equally
}

// Resolve returns the assets, and makes those the cache does not have. When everything is cached it costs a few
// milliseconds and starts no process. It may be called from many goroutines and processes at once.
//
// When ctx ends, Resolve kills the processes it started, leaves nothing half-done, and returns the cause of ctx. Other
// errors wrap ErrInvalid for a Config or file that cannot be used, ErrNotFound for a file that does not exist,
// ErrUnavailable where no source has a kernel or no Go toolchain can build the agent, and ErrCorrupt for a download that
// is not what it should be. Nothing that fails is cached: the next call tries again.
func Resolve(ctx context.Context, cfg Config) (*Assets, error) {
	r, err := newResolver(cfg)
	if err != nil {
		return nil, err
	}
	a, err := r.resolve(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return nil, fmt.Errorf("resolve boot assets: %w", err)
	}
	return a, nil
}

// resolver is one call of Resolve.
type resolver struct {
	cfg   Config
	store *store
	log   *slog.Logger
	rep   *reporter
}

func newResolver(cfg Config) (*resolver, error) {
	if cfg.Arch == "" {
		cfg.Arch = runtime.GOARCH
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("boot config: %w", err)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("boot config: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := openStore(dir, log)
	if err != nil {
		return nil, err
	}
	return &resolver{cfg: cfg, store: s, log: log, rep: &reporter{fn: cfg.Progress}}, nil
}

func (c *Config) validate() error {
	named := 0
	for _, s := range []string{c.Kernel, c.URL, c.Image} {
		if s != "" {
			named++
		}
	}
	switch {
	case c.Dir == "":
		return fmt.Errorf("%w: Dir is empty", errs.ErrInvalid)
	case c.Arch != "amd64" && c.Arch != "arm64":
		return fmt.Errorf("guest architecture %q: %w: amd64 and arm64 are", c.Arch, errs.ErrUnsupported)
	case named > 1:
		return fmt.Errorf("%w: more than one of Kernel, URL and Image is set", errs.ErrInvalid)
	case c.Modules != "" && c.Kernel == "":
		return fmt.Errorf("%w: Modules is set without Kernel", errs.ErrInvalid)
	case c.URL != "" && !isSHA256(c.SHA256):
		return fmt.Errorf("%w: URL needs SHA256, 64 hexadecimal digits", errs.ErrInvalid)
	case c.SHA256 != "" && c.URL == "":
		return fmt.Errorf("%w: SHA256 is set without URL", errs.ErrInvalid)
	}
	return nil
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && strings.ToLower(s) == s
}

// resolve gets kernel and agent side by side: one waits for the network, the other for the compiler.
func (r *resolver) resolve(ctx context.Context) (*Assets, error) {
	var kernel, agent *entry
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { kernel, err = r.kernel(gctx); return err })
	g.Go(func() (err error) { agent, err = r.agent(gctx); return err })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var meta kernelMeta
	if err := json.Unmarshal(kernel.rec.Meta, &meta); err != nil {
		return nil, fmt.Errorf("read kernel record: %w: %w", errs.ErrCorrupt, err)
	}
	initramfs, err := r.initramfs(ctx, kernel, meta, agent)
	if err != nil {
		return nil, err
	}
	return &Assets{
		Arch:      r.cfg.Arch,
		Release:   meta.Release,
		Source:    meta.Source,
		Kernel:    kernel.path(kernelName),
		Initramfs: initramfs.path(initramfsName),
		Agent:     agent.path(agentName),
		Digest:    digest("assets 1", kernel.sum(kernelName), initramfs.sum(initramfsName)),
	}, nil
}

// digest returns the SHA-256 in hex of the parts, each on a line. It makes keys of the cache.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%q\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
