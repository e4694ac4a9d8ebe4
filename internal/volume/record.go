package volume

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// recordVersion is the version of the files. A file of another one is not understood.
const recordVersion = 1

// maxRecord is how long a file may be in bytes: labels are bounded, and JSON makes some bytes six.
const maxRecord = 1 << 20

// record is the content of a file <id>.json.
type record struct {
	Version int  `json:"version"`
	Volume  Info `json:"volume"`
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (m *Manager) write(i Info) error {
	if m.cfg.Dir == "" {
		return nil
	}
	b, err := json.Marshal(record{recordVersion, i})
	if err != nil {
		return err
	}
	return fsx.WriteFile(m.file(i.ID), b, 0o600)
}

func load(dir string, logger *slog.Logger) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w directory of volumes: %w", errs.ErrUnavailable, err)
	}
	var out []Info
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		info, err := read(filepath.Join(dir, e.Name()), id)
		if err != nil {
			logger.Warn("read the record of a volume", "id", id, "err", err)
			info = Info{ID: id, Name: id} // its data stays until somebody removes it
		}
		out = append(out, info)
	}
	return out, nil
}

func read(name, id string) (Info, error) {
	b, err := fsx.ReadRegular(name, maxRecord)
	if err != nil {
		return Info{}, err
	}
	return decode(b, id)
}

// decode reads a file's content and checks all that the code relies on.
func decode(b []byte, id string) (Info, error) {
	var r record
	if len(b) > maxRecord {
		return Info{}, fmt.Errorf("%w: longer than %d bytes", errs.ErrCorrupt, maxRecord)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Info{}, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	switch {
	case r.Version != recordVersion:
		return Info{}, fmt.Errorf("%w: version %d, this program writes %d", errs.ErrUnsupported, r.Version, recordVersion)
	case r.Volume.ID != id:
		return Info{}, fmt.Errorf("%w: it is of volume %.80q", errs.ErrCorrupt, r.Volume.ID)
	}
	for _, err := range []error{CheckName(r.Volume.Name), checkLabels(r.Volume.Labels)} {
		if err != nil {
			return Info{}, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
		}
	}
	return r.Volume, nil
}
