package machine

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
)

// dataDiskID is the serial number by which a guest finds the data disk.
const dataDiskID = "arcbox-data"

// maxKnown is how many ids go into one request. What more containers have left is not swept.
const maxKnown = 8192

// prepare finds what to boot and makes the data disk, at the same time.
func (cfg *Config) prepare(ctx context.Context) (assets *boot.Assets, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if assets, err = boot.Resolve(ctx, cfg.Boot); err != nil {
			return fmt.Errorf("find what to boot: %w", err)
		}
		return nil
	})
	if cfg.Dir != nil {
		g.Go(func() (err error) {
			cache := cfg.DiskCache
			if cache == "" {
				cache = filepath.Join(cfg.Boot.Dir, "disks")
			}
			cfg.dataDisk, err = cfg.Dir.dataDisk(ctx, cache, cfg.DiskSize, cfg.Logger)
			return err
		})
	}
	return assets, g.Wait()
}

// known returns the ids of the containers that there are, as the guest has them.
func (cfg *Config) known() []string {
	ids := cfg.Known()
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = cmp.Or(cfg.Aliases[id], id)
	}
	return out
}

// configure gives the guest what is the machine's own. The guest mounts the disk on its own time; who creates a container
// waits for it.
func (m *Machine) configure(ctx context.Context) error {
	req := api.ConfigureRequest{Time: time.Now(), Hostname: m.cfg.Name}
	m.mu.Lock()
	used := m.spec.State != "" && m.disks[dataDiskID] != nil // it goes on from a machine that has used it
	m.mu.Unlock()
	if m.cfg.dataDisk.Path != "" && !used {
		if err := m.AttachDisks(ctx, m.cfg.dataDisk); err != nil {
			return fmt.Errorf("attach the data disk: %w", err)
		}
		req.DataDisk = dataDiskID
		if m.cfg.Known != nil {
			req.Known = m.cfg.known()
			if m.cfg.Volumes != nil {
				req.Volumes = m.cfg.Volumes()
			}
			req.Sweep = len(req.Known)+len(req.Volumes) <= maxKnown
		}
		if !req.Sweep {
			req.Known, req.Volumes = nil, nil
		}
	}
	return m.agent.Configure(ctx, req)
}
