// Package volume keeps the volumes of a Runtime: their names, their records, and who uses them. Their data is in the
// machine, in a place that has the volume's id for a name: a volume that was removed and one that was made later under the
// same name have nothing in common.
package volume

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// Info is the record of a volume.
type Info struct {
	ID        string            `json:"id"` // of its data
	Name      string            `json:"name"`
	Created   time.Time         `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"` // made for one container, without a name that anybody chose

	UsedBy []string `json:"-"` // names of the containers that have it among their mounts, sorted
}

// Config is what a Manager needs.
type Config struct {
	// Dir is where records are kept. "" keeps them in memory only.
	Dir    string
	Logger *slog.Logger // not nil
	// OnCreate and OnRemove are told of a volume when it is there and when it is no more. They must return soon.
	OnCreate, OnRemove func(Info)
}

// Manager owns the volumes of a Runtime. Its methods may be called from many goroutines.
type Manager struct {
	cfg Config

	mu     sync.Mutex
	byName map[string]*volume
	users  map[string]user // by id
}

type volume struct {
	info  Info
	users map[string]bool // ids
}

// user is a container that uses volumes.
type user struct {
	name    string
	volumes []*volume
}

// Open returns the volumes whose records are kept in Config.Dir, which is made where it does not exist. A record that is
// not understood gives a volume whose name is its id, so that it is seen and can be removed. Nothing is to be closed.
func Open(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, byName: make(map[string]*volume), users: make(map[string]user)}
	if cfg.Dir == "" {
		return m, nil
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w directory of volumes: %w", errs.ErrUnavailable, err)
	}
	if err := fsx.SweepTemp(cfg.Dir, time.Now()); err != nil {
		cfg.Logger.Warn("sweep the directory of volumes", "err", err)
	}
	infos, err := load(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		if other := m.byName[info.Name]; other != nil {
			cfg.Logger.Warn("two volumes have one name", "name", info.Name, "ids", []string{other.info.ID, info.ID})
			continue
		}
		m.byName[info.Name] = &volume{info: info, users: make(map[string]bool)}
	}
	return m, nil
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// CheckName returns ErrInvalid for what cannot be the name of a volume.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w volume name %.200q: use 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit", errs.ErrInvalid, name)
	}
	return nil
}

// The limits of the labels of a volume.
const (
	maxLabels     = 1024
	maxLabelBytes = 64 << 10
)

func checkLabels(labels map[string]string) error {
	n := 0
	for k, v := range labels {
		if k == "" {
			return fmt.Errorf("%w label %q: its key is empty", errs.ErrInvalid, k)
		}
		n += len(k) + len(v)
	}
	if len(labels) > maxLabels || n > maxLabelBytes {
		return fmt.Errorf("%w labels: %d of %d bytes: use at most %d of %d bytes together", errs.ErrInvalid, len(labels), n, maxLabels, maxLabelBytes)
	}
	return nil
}

// Create makes a volume. "" is a name that nobody has, of 64 hexadecimal digits. A name that is taken is ErrExists.
func (m *Manager) Create(name string, labels map[string]string) (Info, error) {
	if name != "" {
		if err := CheckName(name); err != nil {
			return Info{}, err
		}
	}
	if err := checkLabels(labels); err != nil {
		return Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.byName[name]; v != nil {
		return Info{}, fmt.Errorf("volume name %q %w: use that volume, remove it, or choose another name", name, errs.ErrExists)
	}
	v, err := m.create(name, labels)
	if err != nil {
		return Info{}, err
	}
	return v.snapshot(m), nil
}

// create makes a volume whose name is free. The caller holds mu.
func (m *Manager) create(name string, labels map[string]string) (*volume, error) {
	id := newID()
	v := &volume{info: Info{ID: id, Name: name, Created: time.Now(), Labels: maps.Clone(labels)}, users: make(map[string]bool)}
	if name == "" {
		v.info.Name, v.info.Anonymous = id, true
	}
	if err := m.write(v.info); err != nil {
		return nil, fmt.Errorf("write the record of volume %q: %w", v.info.Name, err)
	}
	m.byName[v.info.Name] = v
	if m.cfg.OnCreate != nil {
		m.cfg.OnCreate(v.snapshot(m))
	}
	return v, nil
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never returns an error
	return hex.EncodeToString(b[:])
}

// snapshot is the record as it is now. The caller holds mu.
func (v *volume) snapshot(m *Manager) Info {
	i := v.info
	i.Labels = maps.Clone(i.Labels)
	for id := range v.users {
		i.UsedBy = append(i.UsedBy, m.users[id].name)
	}
	slices.Sort(i.UsedBy)
	return i
}

// find returns the volume with the name. The caller holds mu.
func (m *Manager) find(name string) (*volume, error) {
	v := m.byName[name]
	if v == nil {
		return nil, fmt.Errorf("volume %.200q %w", name, errs.ErrNotFound)
	}
	return v, nil
}

// Get returns the record of a volume.
func (m *Manager) Get(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	return v.snapshot(m), nil
}

// Filter says which volumes List returns and Prune removes: those that fit all of it. The zero value is all.
type Filter struct {
	Labels []string // key, or key=value
	Name   string   // part of the name
	Unused bool     // no container has it among its mounts
	// Anonymous leaves out volumes that somebody has named.
	Anonymous bool
}

func (f Filter) fits(i Info) bool {
	for _, l := range f.Labels {
		k, want, valued := strings.Cut(l, "=")
		if v, ok := i.Labels[k]; !ok || valued && v != want {
			return false
		}
	}
	return strings.Contains(i.Name, f.Name) && (!f.Unused || len(i.UsedBy) == 0) && (!f.Anonymous || i.Anonymous)
}

// List returns the volumes that fit, by name.
func (m *Manager) List(f Filter) []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Info
	for _, v := range m.byName {
		if i := v.snapshot(m); f.fits(i) {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// IDs returns the ids of all volumes, sorted: data of others is of no use any more.
func (m *Manager) IDs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]string, 0, len(m.byName))
	for _, v := range m.byName {
		out = append(out, v.info.ID)
	}
	slices.Sort(out)
	return out
}

// Remove removes the record of a volume and returns what it was: its data is the caller's to delete. One that containers
// use is ErrInUse, whoever of them runs.
func (m *Manager) Remove(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	if len(v.users) > 0 {
		return Info{}, fmt.Errorf("volume %q is %w by the containers %s: remove them first", name, errs.ErrInUse, strings.Join(v.snapshot(m).UsedBy, ", "))
	}
	return v.info, m.remove(v)
}

// remove removes a volume that nobody uses. The caller holds mu.
func (m *Manager) remove(v *volume) error {
	if m.cfg.Dir != "" {
		if err := os.Remove(m.file(v.info.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the record of volume %q: %w", v.info.Name, err)
		}
	}
	delete(m.byName, v.info.Name)
	if m.cfg.OnRemove != nil {
		m.cfg.OnRemove(v.info)
	}
	return nil
}

// Want is a volume that a container asks for.
type Want struct {
	Name   string // "" is an anonymous one
	Labels map[string]string
}

// Use notes that a container uses volumes, and returns them in the order of want. Those that do not exist are made. After
// an error nothing is noted, and what was made is gone.
func (m *Manager) Use(id, name string, want []Want) ([]Info, error) {
	for _, w := range want {
		if w.Name == "" {
			continue
		}
		if err := CheckName(w.Name); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	u := user{name: name}
	var made []*volume
	for _, w := range want {
		v := m.byName[w.Name] // nobody has the name ""
		if v == nil {
			var err error
			if v, err = m.create(w.Name, w.Labels); err != nil {
				for _, v := range made {
					err = errors.Join(err, m.remove(v))
				}
				return nil, err
			}
			made = append(made, v)
		}
		u.volumes = append(u.volumes, v)
	}
	out := make([]Info, len(want))
	m.users[id] = u
	for i, v := range u.volumes {
		v.users[id] = true
		out[i] = v.snapshot(m)
	}
	return out, nil
}

// Restore notes that a container of an earlier program uses volumes. Those that are there no more are left out.
func (m *Manager) Restore(id, name string, names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := user{name: name}
	for _, n := range names {
		if v := m.byName[n]; v != nil {
			u.volumes = append(u.volumes, v)
			v.users[id] = true
		}
	}
	m.users[id] = u
}

// Adopt takes up volumes that a machine has brought along which goes on from a saved one: under their ids, by which their
// data is found. It returns the names that they have here, by id: suffix is added to one that is taken.
func (m *Manager) Adopt(infos []Info, suffix string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make(map[string]string)
	for _, v := range m.byName {
		names[v.info.ID] = v.info.Name
	}
	for _, i := range infos {
		if names[i.ID] != "" {
			continue
		}
		if !idPattern.MatchString(i.ID) || CheckName(i.Name) != nil {
			return nil, fmt.Errorf("volume %.200q: %w: it has no name or no id", i.Name, errs.ErrCorrupt)
		}
		if m.byName[i.Name] != nil {
			i.Name += suffix
		}
		if m.byName[i.Name] != nil || CheckName(i.Name) != nil {
			i.Name = i.ID
		}
		v := &volume{info: i, users: make(map[string]bool)}
		v.info.Labels = maps.Clone(i.Labels)
		if err := m.write(v.info); err != nil {
			return nil, fmt.Errorf("write the record of volume %q: %w", i.Name, err)
		}
		m.byName[i.Name], names[i.ID] = v, i.Name
		if m.cfg.OnCreate != nil {
			m.cfg.OnCreate(v.snapshot(m))
		}
	}
	return names, nil
}

// Rename notes that a container has another name.
func (m *Manager) Rename(id, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u, ok := m.users[id]; ok {
		u.name = name
		m.users[id] = u
	}
}

// Release notes that a container uses its volumes no more. With anonymous those of them that have no chosen name and that
// nobody else uses are removed and returned: their data is the caller's to delete.
func (m *Manager) Release(id string, anonymous bool) (removed []Info) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.users[id]
	delete(m.users, id)
	for _, v := range u.volumes {
		delete(v.users, id)
		if !anonymous || !v.info.Anonymous || len(v.users) > 0 || m.byName[v.info.Name] != v {
			continue
		}
		if err := m.remove(v); err != nil {
			m.cfg.Logger.Warn("remove an anonymous volume", "name", v.info.Name, "err", err)
			continue
		}
		removed = append(removed, v.info)
	}
	return removed
}

func (m *Manager) file(id string) string { return filepath.Join(m.cfg.Dir, id+".json") }
