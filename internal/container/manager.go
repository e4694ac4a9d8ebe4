package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ids"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/internal/network"
	"github.com/arcboxlabs/arcbox-go/internal/share"
	"github.com/arcboxlabs/arcbox-go/internal/socket"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
)

// Machine is what a container needs of the machine it runs in.
type Machine interface {
	// Name names the machine.
	Name() string
	// Agent answers calls to the machine's agent.
	Agent() Agent
	// AttachLayers makes the guest see the disks and returns how it finds them. A disk it has already costs nothing.
	AttachLayers(ctx context.Context, disks []image.LayerDisk) ([]api.Layer, error)
	// Share makes a source available in the guest and returns its id there. release is called when it is not needed any
	// more.
	Share(ctx context.Context, src share.Source) (id string, release func(), err error)
	// Offer makes a Unix socket in the guest whose connections dial makes, and returns its id there. release closes it.
	Offer(ctx context.Context, dial func(context.Context) (net.Conn, error)) (id string, release func(), err error)
	// Done is closed when the machine has ended; Err then tells why.
	Done() <-chan struct{}
	Err() error
	// Persistent tells that what containers write outlives the machine's stop.
	Persistent() bool
}

// Images gives the images that containers are made from.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	Layers(ctx context.Context, img image.Image) ([]image.LayerDisk, error)
	// Use is Get for a container, which needs the image until Unuse. Renew changes what is known of the container.
	Use(ctx context.Context, ref string, by image.User) (image.Image, error)
	// Run is Renew for a container that is about to run. That its image was removed by force meanwhile is an error.
	Run(ctx context.Context, by image.User) error
	Renew(by image.User)
	Unuse(id string)
	// Restore says which containers need which images, of all containers in the groups that are ours.
	Restore(ctx context.Context, ours func(group string) bool, users []image.User) error
}

// Config is what a Manager needs.
type Config struct {
	Images Images
	// Acquire returns the running machine with the name, started if need be, with its disk, and a release that is called
	// once when the container does not need it any more.
	Acquire func(ctx context.Context, machine string) (Machine, func(), error)
	// Current returns the machine with the name where it runs, with its disk, and nil where it does not. nil is never.
	Current func(ctx context.Context, machine string) (Machine, error)
	// Keeps tells that the machine with the name, and with it the records of its containers, belongs to this program. nil
	// is always.
	Keeps func(machine string) bool
	// Others knows the machines of other programs, whose containers are listed and inspected, and used when their machine
	// can be taken. nil is for a program that sees its own containers only.
	Others Others
	// Seccomp compiles a profile in JSON, or the default one for "", for a process with the capabilities. nil is no
	// filter for anybody.
	Seccomp func(profile string, caps []string) ([]byte, error)
	// Volumes has the volumes that containers mount. nil is a set of their own, in memory.
	Volumes *volume.Manager
	// Networks has the networks of containers. nil leaves them a loopback interface.
	Networks *network.Manager
	// Dir is where records are kept. "" keeps them in memory only. Other programs may keep those of other machines there.
	Dir    string
	Events *event.Bus
	Logger *slog.Logger // not nil
}

// Manager owns the containers of a Runtime. All state is in its entries, under mu; calls to the agent are made without
// the lock, one at a time for each container.
type Manager struct {
	cfg     Config
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	records *records // nil where they are not kept
	filters filters

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry // by id
	names   map[string]string // name to id; a name is taken from the moment its creation begins
}

// entry is one container.
type entry struct {
	id   string
	op   chan struct{} // one operation at a time: holding it is having put a token in
	gone chan struct{} // closed when the container has been removed

	// All that follows is under Manager.mu.
	info    Info
	changed chan struct{}       // closed, and replaced, at every change
	lease   *network.Lease      // while it runs in a network; nil otherwise
	sockets []*socket.Published // the same, of sockets on the host
	inst    *instance           // what there is of it in a machine; nil is nothing
	run     *run                // that of now, or the last one, or the one to come of a container that was not started yet
	ends    int                 // how many runs have ended

	marked        bool               // the store knows that it runs
	starting      bool               // the guest was asked to start it and has not answered
	early         *ending            // the end that was reported meanwhile
	prior         State              // what it was before StateRemoving
	stopped       bool               // its end was asked for: the restart policy does not apply
	backoff       time.Duration      // before the last restart
	cancelRestart context.CancelFunc // of one that is pending
	lastEnd       time.Time          // by the guest's clock: an end that is reported twice counts once
	execs         []*execution       // the oldest first
}

// run is one life of a container's process.
type run struct {
	done chan struct{} // closed when exit and err are set
	exit api.Exit
	err  error
}

func newRun() *run { return &run{done: make(chan struct{})} }

func newEntry(info Info) *entry {
	return &entry{
		id: info.ID, info: info, op: make(chan struct{}, 1), gone: make(chan struct{}), changed: make(chan struct{}), run: newRun(),
	}
}

// DefaultMachine is the machine of a container whose spec names none.
const DefaultMachine = "default"

func (c Config) keeps(machine string) bool { return c.Keeps == nil || c.Keeps(machine) }

// NewManager returns a Manager of the containers whose records are kept in Config.Dir, of the machines that this program
// keeps. Those that ran have exited. Close it.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Volumes == nil {
		cfg.Volumes, _ = volume.Open(volume.Config{Logger: cfg.Logger}) // fails on a directory only
	}
	m := &Manager{cfg: cfg, entries: make(map[string]*entry), names: make(map[string]string)}
	if cfg.Dir != "" {
		m.records = newRecords(cfg.Dir, cfg.Logger)
		infos, err := m.load(cfg.keeps)
		if err != nil {
			m.records.close()
			return nil, err
		}
		for _, info := range infos {
			m.restore(info)
		}
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// Close forgets all containers and returns when nothing of the manager runs any more and the records are written. It does
// not stop the machine, which its owner does next.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
	m.mu.Lock()
	for _, e := range m.entries {
		if e.info.State.live() {
			m.ended(e, ending{exit: api.Exit{Code: unknownExitCode}, reason: "the runtime was closed", final: true})
		}
	}
	m.mu.Unlock()
	m.wg.Wait()
	if m.records != nil {
		m.records.close()
	}
}

// Create makes a container and returns its record.
func (m *Manager) Create(ctx context.Context, spec Spec) (_ Info, err error) {
	if err := spec.Validate(); err != nil {
		return Info{}, err
	}
	id := newID()
	name := first(spec.Name, id[:12])
	machine := first(spec.Machine, DefaultMachine)
	img, err := m.cfg.Images.Use(ctx, spec.Image, m.user(Info{ID: id, Name: name, Machine: machine, Spec: spec}))
	if err != nil {
		return Info{}, err
	}
	defer func() {
		if err != nil {
			m.cfg.Images.Unuse(id)
		}
	}()
	req, err := m.compile(id, spec, img) // before a machine is started for it
	if err != nil {
		return Info{}, err
	}
	check, err := compileHealth(spec.Health, img.Healthcheck)
	if err != nil {
		return Info{}, err
	}
	if err := checkSources(spec.Mounts); err != nil {
		return Info{}, err
	}
	if err := m.reserve(name, id); err != nil {
		return Info{}, err
	}
	spec = spec.clone()
	points, err := m.takeVolumes(id, name, spec, img.Config.Volumes)
	if err != nil {
		m.unreserve(name)
		return Info{}, err
	}
	endpoints, err := m.reserveNetworks(id, name, spec)
	if err != nil {
		m.unreserve(name)
		m.cfg.Volumes.Release(id, true)
		return Info{}, err
	}
	e := newEntry(Info{
		ID: id, Name: name, Image: spec.Image, ImageID: img.ID.String(), State: StateCreated, Created: time.Now(),
		Args: req.Process.Args, Env: req.Process.Env, WorkingDir: req.Process.Cwd, User: req.Process.User,
		Machine: machine,
		Labels:  mergeLabels(img.Config.Labels, spec.Labels), StopSignal: stopSignal(spec.StopSignal, img.Config.StopSignal),
		Check: check, Mounts: points, Endpoints: endpoints, Spec: spec,
	})
	e.inst, err = m.place(ctx, e.info, img, req)
	if err == nil {
		err = m.add(e)
	}
	if err != nil {
		m.unreserve(name)
		m.cfg.Volumes.Release(id, true)
		m.releaseNetworks(id)
		return Info{}, err
	}
	if err := m.saved(e); err != nil {
		m.Discard(e.id)
		return Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.info.clone(), nil
}

// stopSignal is the spec's or, where it is one, the image's.
func stopSignal(spec, image string) string {
	if CheckSignal(image) != nil {
		image = ""
	}
	return first(spec, image, "TERM")
}

// add makes a new container known.
func (m *Manager) add(e *entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		e.inst.end()
		return fmt.Errorf("create container: %w", errs.ErrClosed)
	}
	m.entries[e.id] = e
	if isDone(e.inst.machine.Done()) { // it ended before HandleEnd could see the container
		e.drop()
	}
	m.publish(event.ContainerCreated, e.info, nil)
	m.touch(e)
	return nil
}

func (m *Manager) reserve(name, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reserveLocked(name, id)
}

func (m *Manager) reserveLocked(name, id string) error {
	if m.closed {
		return errs.ErrClosed
	}
	if other, taken := m.names[name]; taken {
		return fmt.Errorf("container name %q %w: it belongs to %s; remove that or choose another name", name, errs.ErrExists, other[:12])
	}
	m.names[name] = id
	return nil
}

func (m *Manager) unreserve(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.names, name)
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
	id, err := ids.Find("container", ref, maps.Keys(m.entries))
	return m.entries[id], err
}

// lookup is find with the lock, and refuses once the manager is closed. The machine of a container that another program
// had is taken.
func (m *Manager) lookup(ctx context.Context, ref string) (*entry, error) {
	e, err := m.known(ref)
	if errors.Is(err, errs.ErrNotFound) && m.takeFor(ctx, ref, &err) {
		e, err = m.known(ref)
	}
	return e, err
}

func (m *Manager) known(ref string) (*entry, error) {
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
	if isDone(e.gone) {
		<-e.op
		return nil, fmt.Errorf("container %q %w: it was removed", ref, errs.ErrNotFound)
	}
	return func() { <-e.op }, nil
}

// begin finds a container and takes it for one operation.
func (m *Manager) begin(ctx context.Context, ref string) (*entry, func(), error) {
	e, err := m.lookup(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := e.lock(ctx, ref)
	return e, unlock, err
}

// conflict is the error of an operation that the state of a container does not allow. The caller holds mu.
func (e *entry) conflict(what, fix string) error {
	return fmt.Errorf("%s: %w: container %q is %s: %s", what, errs.ErrConflict, e.info.Name, e.info.State, fix)
}

// touch tells those who wait for a change of the container, and notes what its record has to say: saved waits until it
// does. The caller holds mu.
func (m *Manager) touch(e *entry) {
	close(e.changed)
	e.changed = make(chan struct{})
	switch e.info.State {
	case StateRemoving, StateDead:
		return
	}
	m.mark(e)
	if m.records != nil && !e.info.Spec.AutoRemove && m.cfg.keeps(e.info.Machine) { // that one shall not outlive the program
		m.records.put(e.info.clone())
	}
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Inspect returns the record of one container.
func (m *Manager) Inspect(ref string) (Info, error) {
	e, err := m.known(ref)
	if errors.Is(err, errs.ErrNotFound) {
		if i, ok := m.foreign(ref); ok {
			return i, nil
		}
	}
	if err != nil {
		return Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.info.clone(), nil
}

// IDs returns the ids of all containers of a machine, sorted: what it keeps of others is of no use any more.
func (m *Manager) IDs(machine string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := make([]string, 0, len(m.entries))
	for id, e := range m.entries {
		if e.info.Machine == machine {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Discard removes a container whose caller got an error and does not know of it.
func (m *Manager) Discard(id string) {
	m.undo(func(ctx context.Context) {
		e, err := m.known(id)
		if err != nil {
			return
		}
		if err := m.remove(ctx, e, id, removal{force: true, volumes: true}); err != nil && !errors.Is(err, errs.ErrNotFound) && ctx.Err() == nil {
			m.cfg.Logger.Warn("remove container after an error", "id", id, "err", err)
		}
	})
}

// undoTimeout is how long a caller waits for the clean-up after a failed call.
const undoTimeout = 5 * time.Second

// undo cleans up after a failed call, whose context may have ended. It goes on when that takes long, as in a machine that
// has much to do: what is left undone would stay for ever. Close waits for it.
func (m *Manager) undo(clean func(context.Context)) {
	done := make(chan struct{})
	m.mu.Lock()
	if m.closed { // all goes with the machine
		m.mu.Unlock()
		return
	}
	m.wg.Go(func() {
		defer close(done)
		clean(m.ctx)
	})
	m.mu.Unlock()
	t := time.NewTimer(undoTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
