package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// recordVersion is the version of the files. A file of another one is not understood.
const recordVersion = 1

// maxRecord is how long a file may be in bytes: specs are bounded, and JSON makes some bytes six.
const maxRecord = 8 << 20

// record is the content of a file <id>.json.
type record struct {
	Version int  `json:"version"`
	Info    Info `json:"container"`
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// records keeps the records of containers in files. A change is noted by put and remove, and written by flush, or else in
// the background; of several changes in a row the last is written. A file is replaced in one step. It outlives the program
// from then on, and a power cut when the background has synced it: a caller does not wait for the disk.
type records struct {
	dir    string
	logger *slog.Logger
	wg     sync.WaitGroup
	wake   chan struct{} // has room for one

	writing sync.Mutex // held from the taking of a change until it is written

	mu       sync.Mutex
	pending  map[string]*Info // by id; nil is to be removed
	unsynced map[string]bool  // ids
	closed   bool
}

func newRecords(dir string, logger *slog.Logger) *records {
	r := &records{
		dir: dir, logger: logger, wake: make(chan struct{}, 1), pending: make(map[string]*Info), unsynced: make(map[string]bool),
	}
	r.wg.Go(r.run)
	return r
}

func (r *records) put(info Info)    { r.set(info.ID, &info) }
func (r *records) remove(id string) { r.set(id, nil) }

func (r *records) set(id string, info *Info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.pending[id] = info
	r.signal()
}

func (r *records) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// close writes and syncs what is pending and ends the writing.
func (r *records) close() {
	r.mu.Lock()
	r.closed = true
	r.signal()
	r.mu.Unlock()
	r.wg.Wait()
}

// flush returns when all changes of a record that were noted before are written, by whomever. One that cannot be written
// stays noted.
func (r *records) flush(id string) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	info, ok := r.pending[id]
	delete(r.pending, id)
	r.mu.Unlock()
	if !ok {
		return nil
	}
	err := r.write(id, info)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.unsynced[id] = true
		r.signal()
	} else if _, newer := r.pending[id]; !newer {
		r.pending[id] = info
	}
	return err
}

func (r *records) run() {
	for range r.wake {
		r.mu.Lock()
		closed, ids := r.closed, slices.Collect(maps.Keys(r.pending))
		r.mu.Unlock()
		for _, id := range ids {
			if err := r.flush(id); err != nil {
				r.logger.Warn("write the record of a container", "id", id, "err", err)
			}
		}
		if err := r.sync(); err != nil {
			r.logger.Warn("sync the records of containers", "err", err)
		}
		if closed {
			return
		}
	}
}

// sync makes durable what was written.
func (r *records) sync() error {
	r.mu.Lock()
	ids := r.unsynced
	r.unsynced = make(map[string]bool)
	r.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	var all []error
	for id := range ids {
		if err := fsx.Sync(r.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(append(all, fsx.SyncDir(r.dir))...)
}

func (r *records) file(id string) string { return filepath.Join(r.dir, id+".json") }

func (r *records) write(id string, info *Info) error {
	if info == nil {
		if err := os.Remove(r.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(record{recordVersion, *info})
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return fsx.Replace(r.file(id), b, 0o600)
}

// saved returns when the record of a container says what the container is now.
func (m *Manager) saved(e *entry) error {
	m.mu.Lock()
	kept := m.records != nil && !e.info.Spec.AutoRemove && m.cfg.keeps(e.info.Machine)
	m.mu.Unlock()
	if !kept {
		return nil
	}
	if err := m.records.flush(e.id); err != nil {
		return fmt.Errorf("write the record of container %s: %w", e.id[:12], err)
	}
	return nil
}

// settle is saved for an operation that has happened, whether its record can be written or not. The background tells the
// logger.
func (m *Manager) settle(e *entry) { _ = m.saved(e) }

// leftover is the age from which a temporary file is what a crash left: other programs may be writing theirs.
const leftover = time.Hour

// loadRecords reads the records of a directory, which it makes where it does not exist, for the machines that are kept. A
// file that is not understood gives a container of the default machine in StateDead, so that it is seen and can be
// removed.
func loadRecords(dir string, keeps func(machine string) bool, logger *slog.Logger) ([]Info, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w directory of containers: %w", errs.ErrUnavailable, err)
	}
	if err := fsx.SweepTemp(dir, time.Now().Add(-leftover)); err != nil {
		logger.Warn("sweep the directory of containers", "err", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w directory of containers: %w", errs.ErrUnavailable, err)
	}
	var out []Info
	for _, d := range entries {
		id, ok := strings.CutSuffix(d.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		info, err := loadRecord(filepath.Join(dir, d.Name()), id)
		if err != nil {
			logger.Warn("read the record of a container", "id", id, "err", err)
			info = Info{ID: id, Name: id[:12], Machine: DefaultMachine, State: StateDead, Reason: fmt.Sprintf("its record is damaged: %v", err)}
		}
		if keeps(info.Machine) {
			out = append(out, info)
		}
	}
	return out, nil
}

func loadRecord(name, id string) (Info, error) {
	b, err := fsx.ReadRegular(name, maxRecord)
	if err != nil {
		return Info{}, err
	}
	return decodeRecord(b, id)
}

// decodeRecord reads a file's content and checks all that the code relies on.
func decodeRecord(b []byte, id string) (Info, error) {
	var rec record
	if len(b) > maxRecord {
		return Info{}, fmt.Errorf("%w: longer than %d bytes", errs.ErrCorrupt, maxRecord)
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return Info{}, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	i := rec.Info
	i.Machine = first(i.Machine, DefaultMachine)
	switch i.State {
	case StateCreated, StateExited, StateRunning, StatePaused, StateRestarting:
	default:
		return Info{}, fmt.Errorf("%w: state %q", errs.ErrCorrupt, clip(string(i.State)))
	}
	switch {
	case rec.Version != recordVersion:
		return Info{}, fmt.Errorf("%w: version %d, this program writes %d", errs.ErrUnsupported, rec.Version, recordVersion)
	case i.ID != id:
		return Info{}, fmt.Errorf("%w: it is of container %q", errs.ErrCorrupt, clip(i.ID))
	case i.ImageID == "" || len(i.Args) == 0:
		return Info{}, fmt.Errorf("%w: it names no image or no command", errs.ErrCorrupt)
	}
	for _, err := range []error{checkName(i.Name), checkName(i.Machine), checkPoints(i.Mounts), i.Spec.Validate(), i.Check.validate(), CheckSignal(i.StopSignal)} {
		if err != nil {
			return Info{}, fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
		}
	}
	if i.Check != nil && (len(i.Check.Test) == 0 || i.Check.Test[0] == testNone || i.Check.Interval == 0 || i.Check.Timeout == 0 || i.Check.StartInterval == 0) {
		return Info{}, fmt.Errorf("%w: health check without a test or a time", errs.ErrCorrupt)
	}
	return i, nil
}

// LoadMachine makes the containers known whose records are kept for a machine that this program has taken since. Those
// that are known already stay as they are.
func (m *Manager) LoadMachine(machine string) error {
	if m.records == nil {
		return nil
	}
	infos, err := m.load(func(name string) bool { return name == machine })
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, info := range infos {
		if !m.closed && m.entries[info.ID] == nil {
			m.restore(info)
		}
	}
	return nil
}

// restore makes an entry of a record that was read. What ran when the record was written has ended with its program.
func (m *Manager) restore(i Info) {
	if i.State.live() {
		i.end(time.Now())
		m.records.put(i.clone())
	}
	if other, taken := m.names[i.Name]; taken {
		m.cfg.Logger.Warn("two containers have one name", "name", i.Name, "ids", []string{other, i.ID})
		i.Reason = fmt.Sprintf("its name %q belongs to container %s", i.Name, other[:12])
		i.Name, i.State = i.ID, StateDead
	}
	e := newEntry(i)
	if i.State == StateExited || i.State == StateDead {
		e.run.exit, e.run.err = i.Exit, e.unseen()
		close(e.run.done)
	}
	m.entries[i.ID], m.names[i.Name] = e, i.ID
	m.restoreVolumes(i)
	m.restoreNetworks(i)
}
