package machines

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/ids"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// Snapshot is a machine that was saved while it ran.
type Snapshot struct {
	ID         string            `json:"id"`
	Name       string            `json:"name,omitempty"`
	Machine    string            `json:"machine"` // it was saved from
	Labels     map[string]string `json:"labels,omitempty"`
	Created    time.Time         `json:"created"`
	CPUs       int               `json:"cpus"`
	Memory     int64             `json:"memory"`               // bytes
	Size       int64             `json:"size"`                 // bytes on the host's disk, those that others share included
	Containers json.RawMessage   `json:"containers,omitempty"` // what the machine's user wants to find again
}

// Snapshots keeps saved machines in a directory, with a directory for each. Many programs may use it at once.
type Snapshots struct {
	dir string
}

const (
	snapshotFile    = "snapshot.json"
	snapshotVersion = 1
	snapshotIDBytes = 8
)

type snapshotRecord struct {
	Version  int      `json:"version"`
	Snapshot Snapshot `json:"snapshot"`
}

// NewSnapshots returns the snapshots in a directory, which is made with the first one. What programs have left there that
// were killed is removed.
func NewSnapshots(dir string) *Snapshots {
	machine.Sweep(dir)
	return &Snapshots{dir: dir}
}

// Create makes a snapshot. save gets the directory to write to. What it has left there when it returns an error, or when
// the program dies, is removed. A name that is taken is ErrExists.
func (s *Snapshots) Create(ctx context.Context, snap Snapshot, sync bool, save func(dir string, snap *Snapshot) error) (_ Snapshot, err error) {
	if snap.Name != "" {
		if err := machine.CheckName(snap.Name); err != nil {
			return snap, fmt.Errorf("snapshot: %w", err)
		}
	}
	dir, err := machine.OpenPrivateDir(s.dir)
	if err != nil {
		return snap, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	unlock, err := fsx.Lock(ctx, filepath.Join(s.dir, ".names"), true)
	if err != nil {
		return snap, err
	}
	defer unlock()
	if snap.Name != "" {
		if other, err := s.Get(snap.Name); err == nil {
			return snap, fmt.Errorf("snapshot name %q %w: it belongs to %s; remove that or choose another name", snap.Name, errs.ErrExists, other.ID)
		}
	}
	id := make([]byte, snapshotIDBytes)
	_, _ = rand.Read(id) // never returns an error
	snap.ID, snap.Created, snap.Labels = hex.EncodeToString(id), time.Now(), maps.Clone(snap.Labels)
	if err := save(dir.Path(), &snap); err != nil {
		return snap, err
	}
	if snap.Size, err = finish(ctx, dir.Path(), sync); err != nil {
		return snap, err
	}
	b, err := json.Marshal(snapshotRecord{snapshotVersion, snap})
	if err != nil {
		return snap, fmt.Errorf("encode the record of a snapshot: %w", err)
	}
	if err := fsx.WriteFile(filepath.Join(dir.Path(), snapshotFile), b, 0o600); err != nil {
		return snap, err
	}
	return snap, dir.Publish(snap.ID)
}

// finish returns how much the files of a directory take, and makes them durable.
func finish(ctx context.Context, dir string, sync bool) (size int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		size += fsx.Allocated(info)
		if !sync {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return 0, fmt.Errorf("sync snapshot: %w", err)
		}
	}
	return size, nil
}

// List returns all snapshots, the oldest first. Damaged ones are left out: Remove takes them by their id.
func (s *Snapshots) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []Snapshot
	for _, e := range entries {
		if snap, err := s.read(e.Name()); err == nil {
			out = append(out, snap)
		}
	}
	slices.SortStableFunc(out, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	return out, nil
}

var snapshotID = regexp.MustCompile(`^[0-9a-f]{16}$`)

func (s *Snapshots) read(id string) (Snapshot, error) {
	if !snapshotID.MatchString(id) {
		return Snapshot{}, fmt.Errorf("snapshot %w: %.80q is no id", errs.ErrNotFound, id)
	}
	b, err := os.ReadFile(filepath.Join(s.dir, id, snapshotFile))
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s %w: %w", id, errs.ErrNotFound, err)
	}
	return decodeSnapshot(b, id)
}

func decodeSnapshot(b []byte, id string) (Snapshot, error) {
	var rec snapshotRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: %w", id, errs.ErrCorrupt, err)
	}
	if rec.Version != snapshotVersion || rec.Snapshot.ID != id {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: version %d, id %.80q", id, errs.ErrCorrupt, rec.Version, rec.Snapshot.ID)
	}
	if rec.Snapshot.Name != "" {
		if err := machine.CheckName(rec.Snapshot.Name); err != nil {
			return Snapshot{}, fmt.Errorf("snapshot %s: %w: %w", id, errs.ErrCorrupt, err)
		}
	}
	return rec.Snapshot, nil
}

// Get returns the snapshot with the id, the name, or the unique prefix of an id.
func (s *Snapshots) Get(ref string) (Snapshot, error) {
	if snap, err := s.read(ref); err == nil {
		return snap, nil
	}
	all, err := s.List()
	if err != nil {
		return Snapshot{}, err
	}
	byID := make(map[string]Snapshot, len(all))
	for _, snap := range all {
		if ref != "" && snap.Name == ref {
			return snap, nil
		}
		byID[snap.ID] = snap
	}
	id, err := ids.Find("snapshot", ref, maps.Keys(byID))
	return byID[id], err
}

// Path returns the directory of a snapshot.
func (s *Snapshots) Path(snap Snapshot) string { return filepath.Join(s.dir, snap.ID) }

// Remove removes a snapshot. Machines that were made from it do not need it.
func (s *Snapshots) Remove(ref string) (Snapshot, error) {
	snap, err := s.Get(ref)
	if err != nil && snapshotID.MatchString(ref) { // a damaged one
		if _, serr := os.Lstat(filepath.Join(s.dir, ref)); serr == nil {
			snap, err = Snapshot{ID: ref}, nil
		}
	}
	if err != nil {
		return snap, err
	}
	gone := filepath.Join(s.dir, machine.RemovedName(snap.ID))
	if err := os.Rename(s.Path(snap), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("snapshot %s %w", snap.ID, errs.ErrNotFound)
		}
		return snap, err
	}
	return snap, os.RemoveAll(gone)
}
