package arcbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/internal/machines"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// SnapshotInfo is a machine that was saved while it ran.
type SnapshotInfo struct {
	ID         string // 16 hexadecimal digits
	Name       string // "" is none
	Machine    string // it was saved from
	Labels     map[string]string
	Created    time.Time
	CPUs       int
	Memory     int64    // bytes
	Size       int64    // bytes on the host's disk, those included that it shares with others
	Containers []string // names of those that are in it
}

// SnapshotOptions tunes SnapshotMachine. The zero value works.
type SnapshotOptions struct {
	Name      string            // unique, by the rules of machines' names; "" is none
	Labels    map[string]string // anything
	Temporary bool              // it need not survive a power cut, and is there sooner
}

// SnapshotMachine saves a running machine with its disk, its containers and their memory. The machine stands still for
// some tenths of a second, for as long as it takes to copy the memory that it uses, and goes on.
//
// The machine must have been started with MachineSpec.Forkable or, for the default machine, VMConfig.Forkable; another one
// is ErrUnsupported, one that does not run or is paused ErrConflict. The snapshot belongs to the data directory: it is
// there until RemoveSnapshot, for all Runtimes. MachineSpec.Snapshot makes machines from it.
func (r *Runtime) SnapshotMachine(ctx context.Context, name string, opts SnapshotOptions) (SnapshotInfo, error) {
	return call(ctx, r, "SnapshotMachine", name, func(ctx context.Context) (SnapshotInfo, error) {
		m, err := r.runningMachine(name)
		if err != nil {
			return SnapshotInfo{}, err
		}
		release, err := r.hold(ctx, name, m)
		if err != nil {
			return SnapshotInfo{}, err
		}
		defer release()
		snap, err := r.snapshots.Create(ctx, machines.Snapshot{Name: opts.Name, Machine: name, Labels: opts.Labels}, !opts.Temporary,
			func(dir string, snap *machines.Snapshot) error { return r.saveMachine(ctx, m, dir, snap) })
		if err != nil {
			return SnapshotInfo{}, err
		}
		if err := r.keepImages(ctx, snap); err != nil {
			_, rerr := r.snapshots.Remove(snap.ID)
			r.dropImages(snap)
			return SnapshotInfo{}, errors.Join(err, rerr)
		}
		r.events.Publish(event.Event{Kind: event.MachineSnapshot, ID: snap.ID, Name: snap.Name, Machine: name})
		return snapshotInfo(snap), nil
	})
}

// hold holds a machine that runs.
func (r *Runtime) hold(ctx context.Context, name string, m *machine.Machine) (release func(), err error) {
	now, release, err := r.machines.Acquire(ctx, name)
	if err == nil && now != m {
		release()
		err = fmt.Errorf("machine %s: %w: it has ended meanwhile", name, ErrUnavailable)
	}
	return release, err
}

func (r *Runtime) saveMachine(ctx context.Context, m *machine.Machine, dir string, snap *machines.Snapshot) error {
	var in container.Saved
	err := m.Fork(ctx, dir, func() error {
		in = r.containers.Snapshot(m.Name())
		return nil
	})
	if err != nil {
		return err
	}
	saved, err := machine.ReadSaved(dir)
	if err != nil {
		return err
	}
	snap.CPUs, snap.Memory = saved.CPUs, saved.Memory
	snap.Containers, err = json.Marshal(in)
	return err
}

// keepImages records that a snapshot needs the images of its containers, so that no prune takes them.
func (r *Runtime) keepImages(ctx context.Context, s machines.Snapshot) error {
	for id, ref := range imagesOf(s) {
		by := image.User{ID: id, Name: "of snapshot " + s.ID, Group: "snapshot " + s.ID, Lasting: true}
		if _, err := r.images.Use(ctx, ref, by); err != nil && !errors.Is(err, ErrNotFound) { // that one was removed by force
			return fmt.Errorf("keep the images of the snapshot: %w", err)
		}
	}
	return nil
}

// dropImages ends what keepImages began.
func (r *Runtime) dropImages(s machines.Snapshot) {
	for id := range imagesOf(s) {
		r.images.Unuse(id)
	}
}

// imagesOf are the images that a snapshot needs, by what it is called as their user.
func imagesOf(s machines.Snapshot) map[string]string {
	out := map[string]string{}
	var in container.Saved
	if json.Unmarshal(s.Containers, &in) != nil {
		return out
	}
	for _, i := range in.Containers {
		_, hex, _ := strings.Cut(i.ImageID, ":")
		out["snapshot-"+s.ID+"-"+hex] = i.ImageID
	}
	return out
}

func snapshotInfo(s machines.Snapshot) SnapshotInfo {
	out := SnapshotInfo{
		ID: s.ID, Name: s.Name, Machine: s.Machine, Labels: s.Labels, Created: s.Created, CPUs: s.CPUs, Memory: s.Memory, Size: s.Size,
	}
	var in container.Saved
	if json.Unmarshal(s.Containers, &in) == nil {
		for _, i := range in.Containers {
			out.Containers = append(out.Containers, i.Name)
		}
	}
	return out
}

// ListSnapshotsOptions tunes ListSnapshots. The zero value lists all.
type ListSnapshotsOptions struct{}

// ListSnapshots returns the snapshots of the data directory, the oldest first.
func (r *Runtime) ListSnapshots(ctx context.Context, opts ListSnapshotsOptions) ([]SnapshotInfo, error) {
	return call(ctx, r, "ListSnapshots", "", func(context.Context) ([]SnapshotInfo, error) {
		all, err := r.snapshots.List()
		out := make([]SnapshotInfo, len(all))
		for i, s := range all {
			out[i] = snapshotInfo(s)
		}
		return out, err
	})
}

// InspectSnapshot returns one snapshot, by id, name, or a unique prefix of an id.
func (r *Runtime) InspectSnapshot(ctx context.Context, ref string) (SnapshotInfo, error) {
	return call(ctx, r, "InspectSnapshot", ref, func(context.Context) (SnapshotInfo, error) {
		s, err := r.snapshots.Get(ref)
		if err != nil {
			return SnapshotInfo{}, err
		}
		return snapshotInfo(s), nil
	})
}

// RemoveSnapshot removes a snapshot. Machines that were made from it go on without it.
func (r *Runtime) RemoveSnapshot(ctx context.Context, ref string) error {
	return callNone(ctx, r, "RemoveSnapshot", ref, func(context.Context) error {
		s, err := r.snapshots.Remove(ref)
		if err == nil {
			r.dropImages(s)
			r.events.Publish(event.Event{Kind: event.SnapshotRemoved, ID: s.ID, Name: s.Name, Machine: s.Machine})
		}
		return err
	})
}

// containersFile is the list of the containers, in the directory of a machine that will go on from a snapshot.
const containersFile = "containers.json"

// fromSnapshot completes a machine's spec for a snapshot, and returns what puts it into the machine's directory. rename
// gives the containers ids of their own.
func (r *Runtime) fromSnapshot(ctx context.Context, s machines.Spec, ref string, rename bool) (machines.Spec, func(*machine.Dir) error, error) {
	snap, err := r.snapshots.Get(ref)
	if err != nil {
		return s, nil, err
	}
	saved, err := machine.ReadSaved(r.snapshots.Path(snap))
	if err != nil {
		return s, nil, err
	}
	if s.CPUs != 0 && s.CPUs != saved.CPUs || s.Memory != 0 && s.Memory != saved.Memory {
		return s, nil, fmt.Errorf("%w CPUs %d or Memory %d: the snapshot %s has %d and %d; leave them empty", ErrInvalid, s.CPUs, s.Memory, snap.ID, saved.CPUs, saved.Memory)
	}
	if s.Returns {
		return s, nil, fmt.Errorf("%w ReturnMemory of a machine from a snapshot: what it shares must not be given back", ErrInvalid)
	}
	s.CPUs, s.Memory, s.Disk = saved.CPUs, saved.Memory, saved.DiskSize
	var in container.Saved
	if err := json.Unmarshal(snap.Containers, &in); err != nil {
		return s, nil, fmt.Errorf("snapshot %s: %w: %w", snap.ID, ErrCorrupt, err)
	}
	if rename {
		s.Aliases = in.Renew()
	}
	b, err := json.Marshal(in)
	if err != nil {
		return s, nil, err
	}
	return s, func(dir *machine.Dir) error {
		if err := os.WriteFile(filepath.Join(dir.Path(), containersFile), b, 0o600); err != nil {
			return err
		}
		return dir.GoOnFrom(ctx, r.snapshots.Path(snap))
	}, nil
}

// adopt makes the containers known that a machine has brought along which goes on from a snapshot.
func (r *Runtime) adopt(ctx context.Context, m *machine.Machine, dir *machine.Dir) error {
	path := filepath.Join(dir.Path(), containersFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var in container.Saved
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("containers of the snapshot: %w: %w", ErrCorrupt, err)
	}
	own := m.Name() == DefaultMachine // whose containers have their ids: see fromSnapshot
	if err := r.containers.Adopt(ctx, guest{m}, in, own); err != nil {
		return err
	}
	return errors.Join(os.Remove(path), fsx.SyncDir(dir.Path()))
}
