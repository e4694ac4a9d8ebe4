package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

const (
	recordVersion = 1
	maxRecord     = 4 << 20 // bytes
)

// record is the content of a file <id>.json.
type record struct {
	Version    int       `json:"version"`
	ID         string    `json:"id"`
	VLAN       uint16    `json:"vlan"`
	Created    time.Time `json:"created"`
	Programmed bool      `json:"programmed,omitempty"` // it has a Dial function, which no file can hold
	Machine    string    `json:"machine,omitempty"`    // for which Twin has made it
	Spec       Spec      `json:"spec"`
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// save writes the record of a network. m.mu is held.
func (m *Manager) save(n *network) error {
	if m.cfg.Dir == "" || n.passing {
		return nil
	}
	b, err := json.Marshal(record{recordVersion, n.id, n.vlan, n.created, n.orphan || n.spec.Dial != nil, n.machine, n.spec})
	if err != nil {
		return fmt.Errorf("encode the record of network %q: %w", n.spec.Name, err)
	}
	if err := fsx.WriteFile(m.path(n), b, 0o600); err != nil {
		return fmt.Errorf("write the record of network %q: %w: %w", n.spec.Name, errs.ErrUnavailable, err)
	}
	return nil
}

func (m *Manager) path(n *network) string { return filepath.Join(m.cfg.Dir, n.id+".json") }

func (m *Manager) unsave(n *network) error {
	if m.cfg.Dir == "" || n.passing {
		return nil
	}
	if err := os.Remove(m.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of network %q: %w: %w", n.spec.Name, errs.ErrUnavailable, err)
	}
	return nil
}

// load reads all records. One that is not understood, or does not fit with the others, is left alone, and told of.
func (m *Manager) load() error {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("%w directory of networks: %w", errs.ErrUnavailable, err)
	}
	if err := fsx.SweepTemp(m.cfg.Dir, time.Now()); err != nil {
		m.log.Warn("sweep the directory of networks", "err", err)
	}
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return fmt.Errorf("%w directory of networks: %w", errs.ErrUnavailable, err)
	}
	for _, d := range entries {
		id, ok := strings.CutSuffix(d.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		n, err := readRecord(filepath.Join(m.cfg.Dir, d.Name()), id)
		if err == nil {
			err = m.fits(n)
		}
		if err != nil {
			m.log.Warn("read the record of a network", "id", id, "err", err)
			continue
		}
		m.networks[id] = n
	}
	return nil
}

// fits tells whether a network can be there beside the others.
func (m *Manager) fits(n *network) error {
	for _, o := range m.networks {
		twins := o.machine != n.machine
		if o.vlan == n.vlan || o.spec.Name == n.spec.Name || o.spec.Subnet.Overlaps(n.spec.Subnet) && !twins {
			return fmt.Errorf("%w: it has the name, the subnet or the VLAN of network %s", errs.ErrCorrupt, o.id[:12])
		}
	}
	return nil
}

func readRecord(name, id string) (*network, error) {
	b, err := fsx.ReadRegular(name, maxRecord)
	if err != nil {
		return nil, err
	}
	return decodeRecord(b, id)
}

// decodeRecord reads a file's content and checks all that the code relies on.
func decodeRecord(b []byte, id string) (*network, error) {
	var r record
	if len(b) > maxRecord {
		return nil, fmt.Errorf("%w: longer than %d bytes", errs.ErrCorrupt, maxRecord)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: version %d, this program writes %d", errs.ErrUnsupported, r.Version, recordVersion)
	}
	check := r.Spec
	if check.Name == DefaultName {
		check.Name = "d"
	}
	if err := check.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	s := r.Spec
	if r.ID != id || r.VLAN < 2 || r.VLAN > 4094 || !s.Subnet.IsValid() || !s.Gateway.IsValid() || s.IPv6 != s.Subnet6.IsValid() {
		return nil, fmt.Errorf("%w: it is of another network, or lacks what a network has", errs.ErrCorrupt)
	}
	n := newNetwork(id, r.VLAN, s, r.Created)
	n.orphan, n.machine = r.Programmed, r.Machine
	return n, nil
}
