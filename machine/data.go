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
			cfg.dataDisk, err = cfg.Dir.dataDisk(ctx, cfg.diskCache(), cfg.DiskSize, cfg.Logger)
			return err
		})
	}
	return assets, g.Wait()
}

// diskCache is the directory for what data disks are made from.
func (cfg *Config) diskCache() string {
	return cmp.Or(cfg.DiskCache, filepath.Join(cfg.Boot.Dir, "disks"))
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

// configure gives the guest what is the machine's own. The data disk is named, and mounted when it comes: see UseDisk. One in
// a bay is there already.
func (m *Machine) configure(ctx context.Context) error {
	req := api.ConfigureRequest{Time: time.Now(), Hostname: m.cfg.Name}
	if m.HasDisk() && !m.cfg.diskUsed {
		req.DataDisk = m.Serial(dataDiskID)
		req.DiskLater = req.DataDisk != dataDiskID && !m.cfg.wanted()
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

// UseDisk attaches the data disk, which the guest then mounts and sweeps on its own time; one in a bay, which is there from
// the start, it mounts when a call needs it. UseDisk comes before the first call
// to the agent for which the guest needs the disk, because that waits for it: each that makes or removes a container or
// concerns a volume. A machine that has its disk already, or has none, is left as it is. ctx bounds the wait of this caller
// only. After an error the next call tries again.
func (m *Machine) UseDisk(ctx context.Context) error {
	if !m.HasDisk() {
		return nil
	}
	if err := m.AttachDisks(ctx, m.cfg.dataDisk); err != nil {
		return fmt.Errorf("attach the data disk: %w", err)
	}
	return nil
}

// expectDisk begins what UseDisk does where somebody waits for the machine who will need the disk. They are told of errors.
func (m *Machine) expectDisk() {
	if m.HasDisk() && m.cfg.wanted() {
		_, _ = m.beginAttach(m.cfg.dataDisk)
	}
}

func (cfg *Config) wanted() bool { return cfg.Wanted != nil && cfg.Wanted() }
