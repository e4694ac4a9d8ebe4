package boot

import (
	"context"
	"fmt"
	"os"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Check tells whether Resolve can be expected to find a kernel and an agent, each with the error that it would give. It
// uses no network, fetches and builds nothing, so nil is no promise: a download may still fail.
func Check(ctx context.Context, cfg Config) (kernel, agent error) {
	cfg.Offline, cfg.Progress = true, nil
	r, err := newResolver(cfg)
	if err != nil {
		return err, err
	}
	return r.checkKernel(ctx), r.checkAgent(ctx)
}

func (r *resolver) checkKernel(ctx context.Context) error {
	switch {
	case r.cfg.Kernel != "":
		if _, err := os.Stat(r.cfg.Kernel); err != nil {
			return fmt.Errorf("find kernel: %w", notFound(err))
		}
		return nil
	case r.cfg.URL != "", r.cfg.Image != "":
		return nil // only the network can tell
	}
	_, cached := r.kernelFromSource(ctx, "system-"+r.cfg.Arch)
	if cached == nil {
		return nil
	}
	_, aptErr := r.newApt()
	if aptErr == nil {
		return nil
	}
	if _, _, err := pinned(r.cfg.Arch, r.cfg.Mirror); err == nil {
		return nil
	}
	return fmt.Errorf("find kernel: %w: %w, and the built-in list has none for %s: set Kernel and Modules, or URL and SHA256, or Image",
		errs.ErrUnavailable, aptErr, r.cfg.Arch)
}

func (r *resolver) checkAgent(ctx context.Context) error {
	if r.cfg.Agent != "" {
		return checkAgent(r.cfg.Agent, r.cfg.Arch)
	}
	if _, err := findAgentSource(ctx); err != nil {
		return err
	}
	_, err := goTool(usualGo)
	return err
}
