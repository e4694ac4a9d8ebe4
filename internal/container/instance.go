package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"golang.org/x/sync/errgroup"
)

// instance is what there is of a container in a running machine. A start uses it up: the next one needs another, which
// finds what the former one wrote.
type instance struct {
	machine Machine
	release func() // gives the hold on the machine back; a second call does nothing
	unshare func() // gives its shares back; a second call does nothing
	req     api.CreateRequest
	missing error // why req is not whole, so that it cannot be made again

	// The rest is under Manager.mu.
	used bool // it was started
	held bool // the machine is held
}

// drop forgets the instance, whose machine has ended or which was removed. The caller holds mu.
func (e *entry) drop() {
	if e.inst != nil {
		e.inst.end()
		e.inst = nil
	}
}

// end gives back what an instance has of its machine.
func (i *instance) end() {
	i.unshare()
	i.release()
}

// relax lets go of the machine where it keeps what the container wrote. The caller holds mu.
func (e *entry) relax() {
	if e.inst != nil && e.inst.machine.Persistent() {
		e.inst.release()
		e.inst.held = false
	}
}

// compile makes the request of a container, but for its layers.
func (m *Manager) compile(id string, spec Spec, img image.Image) (api.CreateRequest, error) {
	req, err := compile(id, spec, img.Config, nil)
	if err != nil || spec.Privileged || spec.Seccomp == Unconfined || m.cfg.Seccomp == nil {
		return req, err
	}
	caps := req.Process.Capabilities
	if caps == nil {
		caps = prefixed(defaultCaps)
	}
	req.Process.Seccomp, err = m.filters.get(spec.Seccomp, caps, m.cfg.Seccomp)
	return req, err
}

// place makes the container of a request in the machine, which is started where it does not run.
func (m *Manager) place(ctx context.Context, i Info, img image.Image, req api.CreateRequest) (_ *instance, err error) {
	disks, mach, release, err := m.gather(ctx, i.Machine, img)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if req.Layers, err = mach.AttachLayers(ctx, disks); err != nil {
		return nil, err
	}
	if err := m.compileNetwork(&req, i.Spec.Network, mach); err != nil {
		return nil, err
	}
	mounts, unshare, err := openMounts(ctx, mach, i.Mounts)
	if err != nil {
		return nil, err
	}
	req.Mounts = mounts
	if err := mach.Agent().Create(ctx, req); err != nil {
		err = m.undoCreate(mach, req.ID, err)
		unshare()
		return nil, err
	}
	return &instance{machine: mach, release: sync.OnceFunc(release), unshare: unshare, req: req, held: true}, nil
}

// gather gets the machine and the layers of an image. The checksums of layers are compared while the machine starts.
func (m *Manager) gather(ctx context.Context, machine string, img image.Image) (disks []image.LayerDisk, mach Machine, release func(), err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		disks, err = m.cfg.Images.Layers(ctx, img)
		return err
	})
	g.Go(func() (err error) {
		mach, release, err = m.cfg.Acquire(ctx, machine)
		return err
	})
	if err = g.Wait(); err != nil && release != nil {
		release()
	}
	return disks, mach, release, err
}

// undoCreate removes what a create call that failed may have left in the guest, where its reply is not known because
// the caller's context ended. It returns err. What the container wrote earlier stays.
func (m *Manager) undoCreate(mach Machine, id string, err error) error {
	if isDone(mach.Done()) {
		return err
	}
	m.mu.Lock()
	_, keep := m.entries[id]
	m.mu.Unlock()
	m.undo(func(ctx context.Context) {
		if keep { // the next start makes it again, under the same id: nothing may come after this one
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, undoTimeout)
			defer cancel()
		}
		rerr := mach.Agent().Remove(ctx, api.RemoveRequest{ID: id, Force: true, Keep: keep})
		if rerr != nil && !errors.Is(rerr, errs.ErrNotFound) && !isDone(mach.Done()) {
			m.cfg.Logger.Warn("remove half-made container", "id", id, "err", rerr)
		}
	})
	return err
}

// fresh returns an instance of a container that was not started yet, and makes one where there is none. The caller holds
// op, and the container has no process.
func (m *Manager) fresh(ctx context.Context, e *entry) (*instance, error) {
	inst, err := m.hold(ctx, e)
	if err != nil {
		return nil, err
	}
	if inst != nil && !inst.used {
		return inst, nil
	}
	if inst != nil {
		return m.renew(ctx, e, inst)
	}
	m.mu.Lock()
	info := e.info.clone()
	m.mu.Unlock()
	img, err := m.cfg.Images.Get(ctx, info.ImageID)
	if err != nil {
		return nil, fmt.Errorf("find the image %s of container %s: %w", info.Image, info.Name, err)
	}
	req, err := m.compile(e.id, info.Spec, img)
	if err != nil {
		return nil, err
	}
	inst, err = m.place(ctx, info, img, req)
	if err != nil {
		return nil, err
	}
	return inst, m.adopt(e, inst)
}

// hold makes sure that the machine of a container's instance does not stop, and returns nil where there is no instance
// any more.
func (m *Manager) hold(ctx context.Context, e *entry) (*instance, error) {
	m.mu.Lock()
	inst := e.inst
	held := inst != nil && inst.held
	m.mu.Unlock()
	if inst == nil || held && !isDone(inst.machine.Done()) {
		return inst, nil
	}
	mach, release, err := m.cfg.Acquire(ctx, e.info.Machine)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.inst != inst || mach != inst.machine { // it has ended meanwhile
		release()
		if e.inst == inst {
			e.drop()
		}
		return nil, nil
	}
	inst.release, inst.held = sync.OnceFunc(release), true
	return inst, nil
}

// renew makes an instance in place of a used one, in the same machine.
func (m *Manager) renew(ctx context.Context, e *entry, old *instance) (*instance, error) {
	if old.missing != nil {
		return nil, old.missing
	}
	a := old.machine.Agent()
	if err := a.Remove(ctx, api.RemoveRequest{ID: e.id, Force: true, Keep: true}); err != nil && !errors.Is(err, errs.ErrNotFound) {
		return nil, err
	}
	m.mu.Lock()
	mode := e.info.Spec.Network
	m.mu.Unlock()
	if err := m.compileNetwork(&old.req, mode, old.machine); err != nil {
		return nil, err
	}
	if err := a.Create(ctx, old.req); err != nil {
		return nil, m.undoCreate(old.machine, e.id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.inst != old {
		return nil, fmt.Errorf("start container %q: %w: %s", e.info.Name, errs.ErrUnavailable, machineGone(old.machine))
	}
	e.inst = &instance{machine: old.machine, release: old.release, unshare: old.unshare, req: old.req, held: old.held}
	return e.inst, nil
}

// adopt gives a container its instance.
func (m *Manager) adopt(e *entry, inst *instance) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		inst.end()
		return errs.ErrClosed
	}
	if isDone(inst.machine.Done()) {
		inst.end()
		return fmt.Errorf("%w: %s", errs.ErrUnavailable, machineGone(inst.machine))
	}
	e.inst = inst
	return nil
}

// Reach makes a container present in a running machine, started or not, and calls fn with the machine's agent and the
// container's id. Nothing changes the container's place while fn runs.
func (m *Manager) Reach(ctx context.Context, ref string, fn func(Agent, string) error) error {
	a, id, release, err := m.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer release()
	return fn(a, id)
}

// Open is Reach for what lasts: the machine is held until release is called, which may be done more than once.
func (m *Manager) Open(ctx context.Context, ref string) (a Agent, id string, release func(), err error) {
	e, unlock, err := m.begin(ctx, ref)
	if err != nil {
		return nil, "", nil, err
	}
	defer unlock()
	m.mu.Lock()
	if e.info.State == StateDead {
		defer m.mu.Unlock()
		return nil, "", nil, e.conflict("use container", "it can only be removed")
	}
	inst := e.inst
	m.mu.Unlock()
	if inst == nil {
		if inst, err = m.fresh(ctx, e); err != nil {
			return nil, "", nil, err
		}
	}
	mach, release, err := m.cfg.Acquire(ctx, e.info.Machine) // a hold of its own, that outlives the container's
	if err != nil {
		return nil, "", nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !e.info.State.live() && e.info.State != StateCreated {
		e.relax()
	}
	if mach != inst.machine {
		release()
		return nil, "", nil, fmt.Errorf("use container %q: %w: its machine ended: try again", e.info.Name, errs.ErrUnavailable)
	}
	return mach.Agent(), e.id, release, nil
}

// filters keeps the compiled seccomp filters: compiling one takes longer than starting a container.
type filters struct {
	mu    sync.Mutex
	known []filter
}

type filter struct {
	profile string
	caps    []string
	program []byte
}

const maxFilters = 16

func (f *filters) get(profile string, caps []string, compile func(string, []string) ([]byte, error)) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.known {
		if k.profile == profile && slices.Equal(k.caps, caps) {
			return k.program, nil
		}
	}
	program, err := compile(profile, caps)
	if err != nil {
		return nil, err
	}
	if len(f.known) == maxFilters {
		f.known = f.known[1:]
	}
	f.known = append(f.known, filter{profile, slices.Clone(caps), program})
	return program, nil
}
