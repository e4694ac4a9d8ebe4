package arcbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
)

// VolumeSpec describes a volume to make. The zero value is one with a name that nobody has.
type VolumeSpec struct {
	Name   string            // unique; 1 to 128 letters, digits, '_', '.', '-'; "" is 64 hexadecimal digits
	Labels map[string]string // for the caller's own use
}

// VolumeInfo is the record of a volume as it was at one moment.
type VolumeInfo struct {
	Name      string
	Created   time.Time
	Labels    map[string]string
	Anonymous bool        // nobody has named it
	UsedBy    []string    // names of the containers that have it among their mounts, whether they run or not
	Usage     VolumeUsage // where it was asked for
}

// VolumeUsage is how much there is in a volume.
type VolumeUsage struct {
	Bytes int64 // on the machine's disk
	Files int64 // directories included
}

func volumeInfo(i volume.Info) VolumeInfo {
	return VolumeInfo{Name: i.Name, Created: i.Created, Labels: i.Labels, Anonymous: i.Anonymous, UsedBy: i.UsedBy}
}

// CreateVolume makes a volume: a directory on the machine's disk that outlives containers, the machine's stop and the
// program. A container that mounts a volume makes it too. No machine is started for it. A name that is taken is ErrExists,
// one that cannot be a name ErrInvalid.
//
// In a Runtime whose machine is its own, as with VMConfig.Ephemeral, volumes end with it.
func (r *Runtime) CreateVolume(ctx context.Context, spec VolumeSpec) (VolumeInfo, error) {
	return call(ctx, r, "CreateVolume", spec.Name, func(context.Context) (VolumeInfo, error) {
		info, err := r.volumes.Create(spec.Name, spec.Labels)
		return volumeInfo(info), err
	})
}

// ListVolumesOptions says which volumes ListVolumes returns: those that fit all fields that are set. The zero value lists
// all.
type ListVolumesOptions struct {
	Labels []string // all of these: key, or key=value
	Name   string   // part of the name
	Unused bool     // only those that no container has among its mounts
}

// ListVolumes returns the volumes of this Runtime by name, without their usage.
func (r *Runtime) ListVolumes(ctx context.Context, opts ListVolumesOptions) ([]VolumeInfo, error) {
	return call(ctx, r, "ListVolumes", "", func(context.Context) ([]VolumeInfo, error) {
		infos := r.volumes.List(volume.Filter{Labels: opts.Labels, Name: opts.Name, Unused: opts.Unused})
		out := make([]VolumeInfo, len(infos))
		for i, info := range infos {
			out[i] = volumeInfo(info)
		}
		return out, nil
	})
}

// InspectVolumeOptions tunes InspectVolume. The zero value works.
type InspectVolumeOptions struct {
	Usage bool // find out how much there is in it, for which the machine is started
	// Machine is the one whose data is looked at: each machine in which a container has mounted the volume has its own. "" is
	// the default machine.
	Machine string
}

// InspectVolume returns the record of one volume.
func (r *Runtime) InspectVolume(ctx context.Context, name string, opts InspectVolumeOptions) (VolumeInfo, error) {
	return call(ctx, r, "InspectVolume", name, func(ctx context.Context) (VolumeInfo, error) {
		info, err := r.volumes.Get(name)
		out := volumeInfo(info)
		if err != nil || !opts.Usage {
			return out, err
		}
		machine := opts.Machine
		if machine == "" {
			machine = DefaultMachine
		}
		a, release, err := r.volumeAgent(ctx, machine)
		if err != nil {
			return out, err
		}
		defer release()
		rep, err := a.VolumeStat(ctx, api.VolumeStatRequest{ID: info.ID})
		out.Usage = VolumeUsage(rep)
		return out, err
	})
}

// RemoveVolume removes a volume and its data. One that containers have among their mounts is ErrInUse, whether they run or
// not. The data is deleted in the background, in a machine that does not run when that starts.
func (r *Runtime) RemoveVolume(ctx context.Context, name string) error {
	return callNone(ctx, r, "RemoveVolume", name, func(context.Context) error {
		_, err := r.volumes.Remove(name)
		return err
	})
}

// PruneVolumesOptions says which volumes PruneVolumes removes. The zero value is the anonymous ones that no container uses.
type PruneVolumesOptions struct {
	All    bool     // those with a name too
	Labels []string // only those with all of these: key, or key=value
}

// PruneVolumes removes volumes that no container has among its mounts, and returns them.
func (r *Runtime) PruneVolumes(ctx context.Context, opts PruneVolumesOptions) ([]VolumeInfo, error) {
	return call(ctx, r, "PruneVolumes", "", func(context.Context) (out []VolumeInfo, err error) {
		for _, info := range r.volumes.List(volume.Filter{Labels: opts.Labels, Unused: true, Anonymous: !opts.All}) {
			_, rerr := r.volumes.Remove(info.Name)
			if errors.Is(rerr, ErrNotFound) || errors.Is(rerr, ErrInUse) {
				continue // it has changed meanwhile
			}
			if err = errors.Join(err, rerr); rerr == nil {
				out = append(out, volumeInfo(info))
			}
		}
		return out, err
	})
}

// ExportVolume writes what the default machine has in a volume to w, as a tar archive with owners, modes, times, links and attributes. A
// container may write to the volume meanwhile, and its changes may be in the archive or not. The machine is started where
// it does not run.
func (r *Runtime) ExportVolume(ctx context.Context, name string, w io.Writer) error {
	return r.withVolume(ctx, "ExportVolume", name, func(ctx context.Context, a *agent.Client, id string) error {
		archive, err := a.VolumeExport(ctx, api.VolumeExportRequest{ID: id})
		if err != nil {
			return err
		}
		defer archive.Close()
		if _, err := io.Copy(w, archive); err != nil {
			return fmt.Errorf("copy the archive: %w", err)
		}
		return nil
	})
}

// ImportVolume unpacks a tar archive into a volume, which must exist. What the archive has replaces what is there, what
// else there is stays. Owners are those of the archive. Nothing is written outside the volume, whatever links lead
// there. A bad archive is ErrInvalid, one that ends too early ErrCorrupt; what came before is there then.
func (r *Runtime) ImportVolume(ctx context.Context, name string, archive io.Reader) error {
	return r.withVolume(ctx, "ImportVolume", name, func(ctx context.Context, a *agent.Client, id string) error {
		return a.VolumeImport(ctx, api.VolumeImportRequest{ID: id}, archive)
	})
}

// withVolume calls do with the id of a volume and the agent of the machine that has it.
func (r *Runtime) withVolume(ctx context.Context, op, name string, do func(context.Context, *agent.Client, string) error) error {
	return callNone(ctx, r, op, name, func(ctx context.Context) error {
		info, err := r.volumes.Get(name)
		if err != nil {
			return err
		}
		a, release, err := r.volumeAgent(ctx, DefaultMachine)
		if err != nil {
			return err
		}
		defer release()
		return do(ctx, a, info.ID)
	})
}

// volumeAgent returns the agent of a machine that has data of volumes, which is started where it does not run.
func (r *Runtime) volumeAgent(ctx context.Context, machine string) (*agent.Client, func(), error) {
	m, release, err := r.machines.Use(ctx, machine)
	if err != nil {
		return nil, nil, err
	}
	return m.Agent(), release, nil
}

func (r *Runtime) volumeCreated(i volume.Info) {
	r.events.Publish(event.Event{Kind: event.VolumeCreated, Name: i.Name, Machine: DefaultMachine})
}

// dropTimeout bounds the deletion of a volume's data, which is a renaming. What is not deleted is swept after the next start.
const dropTimeout = 10 * time.Second

// volumeRemoved deletes the data of a volume in a machine that runs. One that does not sweeps it when it next uses its disk.
func (r *Runtime) volumeRemoved(i volume.Info) {
	r.events.Publish(event.Event{Kind: event.VolumeRemoved, Name: i.Name, Machine: DefaultMachine})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.calls.Go(func() {
		m, ok := r.machines.Current(DefaultMachine)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, dropTimeout)
		defer cancel()
		err := m.UseDisk(ctx)
		if err == nil {
			err = m.Agent().VolumeRemove(ctx, api.VolumeRemoveRequest{ID: i.ID})
		}
		if err != nil {
			r.cfg.Logger.Debug("delete the data of a volume", "volume", i.Name, "err", err)
		}
	})
}
