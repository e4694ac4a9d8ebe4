package machines

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/machine"
)

// Spec says what a machine is.
type Spec struct {
	Name     string            `json:"name"`
	CPUs     int               `json:"cpus"`
	Memory   int64             `json:"memory"` // bytes
	Disk     int64             `json:"disk"`   // bytes of the data disk, when it is made
	Labels   map[string]string `json:"labels,omitempty"`
	Forkable bool              `json:"forkable,omitempty"`
	Returns  bool              `json:"returns,omitempty"` // memory, to the host
	// Aliases are what containers that came with a snapshot are called in the guest, by their ids.
	Aliases   map[string]string `json:"aliases,omitempty"`
	Ephemeral bool              `json:"-"` // it leaves nothing: it has no record, and its directory goes with the program
}

func (s Spec) clone() Spec {
	s.Labels, s.Aliases = maps.Clone(s.Labels), maps.Clone(s.Aliases)
	return s
}

// The bounds of a Spec.
const (
	MaxCPUs   = 255
	MinMemory = 128 << 20
	maxLabels = 256
	maxLabel  = 4096 // bytes of a key, and of a value
)

// complete fills zero fields from another spec and checks the result.
func (s Spec) complete(from Spec) (Spec, error) {
	if err := machine.CheckName(s.Name); err != nil {
		return s, err
	}
	if s.CPUs == 0 {
		s.CPUs = from.CPUs
	}
	if s.Memory == 0 {
		s.Memory = from.Memory
	}
	if s.Disk == 0 {
		s.Disk = from.Disk
	}
	return s, s.check()
}

func (s *Spec) check() (err error) {
	if s.CPUs < 1 || s.CPUs > MaxCPUs {
		return fmt.Errorf("%w CPUs %d: use 1 to %d, or 0 for the default", errs.ErrInvalid, s.CPUs, MaxCPUs)
	}
	if s.Memory < MinMemory {
		return fmt.Errorf("%w Memory %d: it is in bytes; use at least %d, or 0 for the default", errs.ErrInvalid, s.Memory, int64(MinMemory))
	}
	if s.Disk, err = disk.Round(s.Disk); err != nil {
		return fmt.Errorf("size of the disk: %w", err)
	}
	if s.Forkable && s.Returns {
		return fmt.Errorf("%w Forkable with ReturnMemory: what a fork shares must not be given back: choose one", errs.ErrInvalid)
	}
	if len(s.Labels) > maxLabels {
		return fmt.Errorf("%w Labels: %d of them: at most %d are possible", errs.ErrInvalid, len(s.Labels), maxLabels)
	}
	for k, v := range s.Labels {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel {
			return fmt.Errorf("%w label %.80q: a key has 1 to %d bytes, a value at most as many", errs.ErrInvalid, k, maxLabel)
		}
	}
	return nil
}

// recordFile is the record of a machine, in its directory. One without it is being made or was left half made.
const recordFile = "machine.json"

// The version of the record and its greatest length in bytes.
const (
	recordVersion = 1
	maxRecord     = 4 << 20
)

type record struct {
	Version int       `json:"version"`
	Spec    Spec      `json:"machine"`
	Created time.Time `json:"created"`
}

func writeRecord(dir string, s Spec, created time.Time) error {
	b, err := json.Marshal(record{recordVersion, s, created})
	if err != nil {
		return fmt.Errorf("encode the record of machine %s: %w", s.Name, err)
	}
	return fsx.WriteFile(filepath.Join(dir, recordFile), b, 0o600)
}

// readRecord reads a record and checks all that the code relies on. One that is not there is ErrNotFound.
func readRecord(dir, name string) (record, error) {
	b, err := fsx.ReadRegular(filepath.Join(dir, recordFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("record of machine %s: %w", name, errs.ErrNotFound)
	}
	if err != nil {
		return record{}, fmt.Errorf("read the record of machine %s: %w", name, err)
	}
	rec, err := decodeRecord(b, name)
	if err != nil {
		return rec, fmt.Errorf("record of machine %s: %w", name, err)
	}
	return rec, nil
}

func decodeRecord(b []byte, name string) (rec record, err error) {
	if len(b) > maxRecord {
		return rec, fmt.Errorf("%w: longer than %d bytes", errs.ErrCorrupt, maxRecord)
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	switch {
	case rec.Version != recordVersion:
		return rec, fmt.Errorf("%w: version %d, this program writes %d", errs.ErrUnsupported, rec.Version, recordVersion)
	case rec.Spec.Name != name:
		return rec, fmt.Errorf("%w: it is of machine %.80q", errs.ErrCorrupt, rec.Spec.Name)
	}
	if err := rec.Spec.check(); err != nil {
		return rec, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	return rec, nil
}
