package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// Machine is what a container needs of the machine it runs in.
type Machine interface {
	// Name names the machine.
	Name() string
	// Agent answers calls to the machine's agent.
	Agent() Agent
	// AttachLayers makes the guest see the disks and returns how it finds them. A disk it has already costs nothing.
	AttachLayers(ctx context.Context, disks []image.LayerDisk) ([]api.Layer, error)
	// Done is closed when the machine has ended; Err then tells why.
	Done() <-chan struct{}
	Err() error
}

// Images gives the images that containers are made from.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	Layers(ctx context.Context, img image.Image) ([]image.LayerDisk, error)
}

// Config is what a Manager needs.
type Config struct {
	Images Images
	// Acquire returns the running machine, started if need be, and a release that is called once when the container
	// does not need it any more.
	Acquire func(context.Context) (Machine, func(), error)
	Events  *event.Bus
	Logger  *slog.Logger // not nil
}

// Manager owns the containers of a Runtime. All state is in its entries, under mu; calls to the agent are made without
// the lock, one at a time for each container.
type Manager struct {
	cfg    Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry // by id
	names   map[string]string // name to id; a name is taken from the moment its creation begins
}

// entry is one container.
type entry struct {
	op      chan struct{} // one operation at a time: holding it is having put a token in
	machine Machine
	release func() // gives the hold on machine back

	info   Info          // under Manager.mu
	exited chan struct{} // closed when info.State is StateExited
	gone   chan struct{} // closed when the container has been removed
}

// NewManager returns a Manager with no containers.
func NewManager(cfg Config) *Manager {
	ctx, cancel := context.WithCancel(context.Background())
	return &Manager{
		cfg: cfg, ctx: ctx, cancel: cancel,
		entries: make(map[string]*entry), names: make(map[string]string),
	}
}

// Close forgets all containers and returns when nothing of the manager runs any more. It does not stop the machine,
// which its owner does next.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		m.markExited(e, api.Exit{Code: unknownExitCode}, "the runtime was closed")
	}
}

// Create makes a container and returns its record.
func (m *Manager) Create(ctx context.Context, spec Spec) (Info, error) {
	if err := spec.Validate(); err != nil {
		return Info{}, err
	}
	img, err := m.cfg.Images.Get(ctx, spec.Image)
	if err != nil {
		return Info{}, err
	}
	id := newID()
	if _, err := compile(id, spec, img.Config, nil); err != nil {
		return Info{}, err // before a machine is started for it
	}
	name := first(spec.Name, id[:12])
	if err := m.reserve(name, id); err != nil {
		return Info{}, err
	}
	e, err := m.create(ctx, id, name, spec, img)
	if err != nil {
		m.mu.Lock()
		delete(m.names, name)
		m.mu.Unlock()
		return Info{}, err
	}
	m.publish(event.ContainerCreated, e.info)
	return e.info.clone(), nil
}

func (m *Manager) create(ctx context.Context, id, name string, spec Spec, img image.Image) (_ *entry, err error) {
	disks, err := m.cfg.Images.Layers(ctx, img)
	if err != nil {
		return nil, err
	}
	mach, release, err := m.cfg.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	layers, err := mach.AttachLayers(ctx, disks)
	if err != nil {
		return nil, err
	}
	req, err := compile(id, spec, img.Config, layers)
	if err != nil {
		return nil, err
	}
	if err := mach.Agent().Create(ctx, req); err != nil {
		return nil, m.undoCreate(mach, id, err)
	}
	e := &entry{
		op: make(chan struct{}, 1), machine: mach, release: sync.OnceFunc(release),
		exited: make(chan struct{}), gone: make(chan struct{}),
		info: Info{
			ID: id, Name: name, Machine: mach.Name(), Image: spec.Image, ImageID: img.ID.String(), State: StateCreated, Created: time.Now(),
			Args: req.Process.Args, Labels: mergeLabels(img.Config.Labels, spec.Labels),
			StopSignal: first(spec.StopSignal, img.Config.StopSignal, "TERM"),
			TTY:        spec.TTY, Stdin: spec.Stdin, AutoRemove: spec.AutoRemove,
		},
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("create container: %w", errs.ErrClosed)
	}
	m.entries[id] = e
	select {
	case <-mach.Done(): // it ended before HandleEnd could see the container
		m.markExited(e, api.Exit{Code: unknownExitCode}, machineGone(mach))
	default:
	}
	return e, nil
}

// undoCreate removes what a create call that failed may have left in the guest, where its reply is not known because
// the caller's context ended. It returns err.
func (m *Manager) undoCreate(mach Machine, id string, err error) error {
	ctx, cancel := context.WithTimeout(m.ctx, undoTimeout)
	defer cancel()
	if rerr := mach.Agent().Remove(ctx, api.RemoveRequest{ID: id, Force: true}); rerr != nil && !errors.Is(rerr, errs.ErrNotFound) {
		m.cfg.Logger.Warn("remove half-made container", "id", id, "err", rerr)
	}
	return err
}

// undoTimeout bounds the clean-up after a failed call, in which the caller waits.
const undoTimeout = 5 * time.Second

func (m *Manager) reserve(name, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errs.ErrClosed
	}
	if other, taken := m.names[name]; taken {
		return fmt.Errorf("container name %q %w: it belongs to %s; remove that or choose another name", name, errs.ErrExists, other[:12])
	}
	m.names[name] = id
	return nil
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never returns an error
	return hex.EncodeToString(b[:])
}

// find returns the container with the id, the name, or the unique prefix of an id. The caller holds mu.
func (m *Manager) find(ref string) (*entry, error) {
	if e := m.entries[ref]; e != nil {
		return e, nil
	}
	if e := m.entries[m.names[ref]]; e != nil {
		return e, nil
	}
	var found []string
	for id := range m.entries {
		if ref != "" && strings.HasPrefix(id, ref) {
			found = append(found, id[:min(len(id), max(12, len(ref)+4))])
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("container %w: no id, name or prefix is %q", errs.ErrNotFound, ref)
	case 1:
		for id, e := range m.entries {
			if strings.HasPrefix(id, ref) {
				return e, nil
			}
		}
	}
	slices.Sort(found)
	return nil, fmt.Errorf("%w container %q: the prefix fits %s", errs.ErrInvalid, ref, strings.Join(found, ", "))
}

// lookup is find with the lock, and refuses once the manager is closed.
func (m *Manager) lookup(ref string) (*entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	return m.find(ref)
}

// lock takes the container for one operation. A container that was removed meanwhile is ErrNotFound.
func (e *entry) lock(ctx context.Context, ref string) (unlock func(), err error) {
	select {
	case e.op <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-e.gone:
		<-e.op
		return nil, fmt.Errorf("container %q %w: it was removed", ref, errs.ErrNotFound)
	default:
		return func() { <-e.op }, nil
	}
}

// List returns the containers, oldest first.
func (m *Manager) List() ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errs.ErrClosed
	}
	out := make([]Info, 0, len(m.entries))
	for _, e := range m.entries {
		out = append(out, e.info.clone())
	}
	slices.SortFunc(out, func(a, b Info) int {
		return cmpOr(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Inspect returns the record of one container.
func (m *Manager) Inspect(ref string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Info{}, errs.ErrClosed
	}
	e, err := m.find(ref)
	if err != nil {
		return Info{}, err
	}
	return e.info.clone(), nil
}

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}
