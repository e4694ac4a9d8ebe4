package container

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/network"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
)

// Saved is what the snapshot of a machine has of its containers.
type Saved struct {
	Containers []Info          `json:"containers"`
	Networks   []network.Saved `json:"networks,omitempty"` // that they are in
	Volumes    []volume.Info   `json:"volumes,omitempty"`  // all of the program
}

// Snapshot returns what there is of a machine's containers, for Adopt.
func (m *Manager) Snapshot(machine string) Saved {
	out := Saved{Containers: m.living(machine), Volumes: m.cfg.Volumes.List(volume.Filter{})}
	if m.cfg.Networks != nil {
		ids := make(map[string]bool)
		for _, i := range out.Containers {
			for _, e := range i.Endpoints {
				ids[e.NetworkID] = true
			}
		}
		out.Networks = m.cfg.Networks.Save(ids)
	}
	return out
}

// Renew gives the containers ids of their own, for a program that may have those they were saved from too. It returns the
// ids that they have in the guest by the new ones.
func (s *Saved) Renew() map[string]string {
	aliases := make(map[string]string, len(s.Containers))
	was := slices.Clone(s.Containers)
	for k := range s.Containers {
		s.Containers[k].ID = newID()
		aliases[s.Containers[k].ID] = was[k].ID
	}
	for k := range s.Containers { // the network of another one is that of the one beside it
		i := &s.Containers[k]
		ref, shares := strings.CutPrefix(i.Spec.Network, modeContainer)
		at := slices.IndexFunc(was, func(o Info) bool { return o.ID == ref || o.Name == ref })
		if at < 0 {
			at = slices.IndexFunc(was, func(o Info) bool { return strings.HasPrefix(o.ID, ref) })
		}
		if shares && at >= 0 {
			i.Spec.Network = modeContainer + s.Containers[at].ID
		}
	}
	return aliases
}

// living returns the records of a machine's containers.
func (m *Manager) living(machine string) []Info {
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
//
// Their networks are twins of those that they were in, with the same addresses, where they are found by the names that they
// had. own says that nobody of those containers is here beside them: then the networks have their own names.
func (m *Manager) Adopt(ctx context.Context, mach Machine, saved Saved, own bool) error {
	brought := saved.Volumes
	if !own { // the others are of the program, and it has kept or removed them
		brought = mounted(saved)
	}
	volumes, err := m.cfg.Volumes.Adopt(brought, "-"+mach.Name())
	if err != nil {
		return fmt.Errorf("go on with volumes: %w", err)
	}
	twins := make(map[string]twin)
	for _, n := range saved.Networks {
		if m.cfg.Networks == nil || portOf(mach) == nil {
			break
		}
		t, err := m.cfg.Networks.Twin(n, mach.Name(), own, m.records != nil && m.cfg.keeps(mach.Name()))
		if err != nil {
			return fmt.Errorf("go on with network %s: %w", n.Spec.Name, err)
		}
		twins[n.ID] = twin{t.ID, t.VLAN == n.VLAN}
	}
	for _, i := range saved.Containers {
		i = i.clone()
		for k, p := range i.Mounts {
			if name := volumes[p.VolumeID]; p.Type == MountVolume && name != "" {
				i.Mounts[k].Name = name
			}
		}
		if err := m.adoptOne(ctx, mach, i, twins); err != nil {
			return fmt.Errorf("go on with container %s: %w", i.Name, err)
		}
	}
	return nil
}

// mounted are the volumes that containers of a snapshot have among their mounts.
func mounted(saved Saved) []volume.Info {
	used := make(map[string]bool)
	for _, i := range saved.Containers {
		for _, p := range i.Mounts {
			used[p.VolumeID] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(saved.Volumes), func(v volume.Info) bool { return !used[v.ID] })
}

func (m *Manager) adoptOne(ctx context.Context, mach Machine, i Info, twins map[string]twin) (err error) {
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
	// A mount of a share that the saved machine had gives errors: its other end is elsewhere. The next start has this one, or
	// fails where it cannot be had, as one of a value of the program that the machine was saved in.
	mounts, unshare, missing := openMounts(ctx, mach, i.Mounts)
	if missing != nil {
		if ctx.Err() != nil {
			return missing
		}
		unshare = func() {}
	}
	req.Mounts = mounts
	lease, err := m.adoptNetworks(ctx, mach, &i, twins)
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
	m.enter(i, lease, &instance{machine: mach, release: func() {}, unshare: unshare, req: req, missing: missing, used: i.State != StateCreated || missing != nil})
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
