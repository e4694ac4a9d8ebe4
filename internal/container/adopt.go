package container

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/network"
)

// Snapshot returns the records of a machine's containers, for Adopt.
func (m *Manager) Snapshot(machine string) []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Info
	for _, e := range m.entries {
		if e.info.Machine == machine && e.info.State != StateRemoving && e.info.State != StateDead {
			i := e.info.clone()
			i.Health = nil
			out = append(out, i)
		}
	}
	return out
}

// Adopt makes the containers known that are in a machine which goes on from a saved one, where Snapshot told of them. Those
// that ran there run here. Their ids are what the machine's agent takes them by. A name that is taken here gets the
// machine's name added, or becomes the id. Config.Acquire is called for those that run when the machine is ready.
func (m *Manager) Adopt(ctx context.Context, mach Machine, infos []Info) error {
	for _, i := range infos {
		if err := m.adoptOne(ctx, mach, i); err != nil {
			return fmt.Errorf("go on with container %s: %w", i.Name, err)
		}
	}
	return nil
}

func (m *Manager) adoptOne(ctx context.Context, mach Machine, i Info) (err error) {
	m.mu.Lock()
	known := m.entries[i.ID]
	m.mu.Unlock()
	if known != nil {
		return nil // of a try before
	}
	i.Machine, i.Spec.Machine = mach.Name(), mach.Name()
	by := m.user(i)
	by.Running = i.State.live()
	img, err := m.cfg.Images.Use(ctx, i.ImageID, by)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.cfg.Images.Unuse(i.ID)
		}
	}()
	req, err := m.compile(i.ID, i.Spec, img)
	if err != nil {
		return err
	}
	disks, err := m.cfg.Images.Layers(ctx, img)
	if err != nil {
		return err
	}
	if req.Layers, err = mach.AttachLayers(ctx, disks); err != nil {
		return err
	}
	// A mount of a share that the saved machine had gives errors: its other end is elsewhere. The next start has this one.
	mounts, unshare, err := openMounts(ctx, mach, i.Mounts)
	if err != nil {
		return err
	}
	req.Mounts = mounts
	lease, err := m.adoptNetworks(ctx, mach, &i)
	if err != nil {
		unshare()
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range []string{i.Name, i.Name + "-" + mach.Name(), i.ID} {
		if err = m.reserveLocked(name, i.ID); err == nil {
			i.Name = name
			break
		}
	}
	if err != nil {
		unshare()
		m.releaseNetworks(i.ID)
		return err
	}
	m.restoreVolumes(i)
	m.enter(i, lease, &instance{machine: mach, release: func() {}, unshare: unshare, req: req, used: i.State != StateCreated})
	return nil
}

// enter makes the entry of a container that was adopted. The caller holds mu.
func (m *Manager) enter(i Info, lease *network.Lease, inst *instance) {
	marked, restarting := i.State.live(), i.State == StateRestarting
	if restarting { // its end was seen, and its start is still to come
		i.State = StateExited
	}
	e := newEntry(i)
	e.inst, e.lease, e.marked = inst, lease, marked
	m.entries[i.ID] = e
	m.publish(event.ContainerCreated, e.info, nil)
	switch {
	case i.State == StateRunning || i.State == StatePaused:
		m.publish(event.ContainerStarted, e.info, nil)
		e.sockets = m.adoptSockets(e, inst.machine)
		m.watchHealth(e)
		m.wg.Go(func() { m.holdLater(e, inst) })
		m.wg.Go(func() { m.ask(e, e.run, inst.machine.Agent()) }) // it may have ended before anybody listened
	case i.State == StateExited:
		e.run.exit, e.run.err = i.Exit, e.unseen()
		close(e.run.done)
		if restarting {
			e.info.State = StateRestarting
			m.restartLater(e, 0)
		}
	}
	m.touch(e)
}

// adoptTime bounds how long a machine may take to become ready whose containers are known already.
const adoptTime = 5 * time.Minute

// holdLater holds the machine of a container that runs in it.
func (m *Manager) holdLater(e *entry, inst *instance) {
	ctx, cancel := context.WithTimeout(m.ctx, adoptTime)
	defer cancel()
	mach, release, err := m.cfg.Acquire(ctx, e.info.Machine)
	if err != nil {
		return // the machine has ended, and its containers with it
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.inst != inst || mach != inst.machine || !e.info.State.live() {
		release()
		return
	}
	inst.release, inst.held = sync.OnceFunc(release), true
}
