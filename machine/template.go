package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// The files of a template.
const (
	memoryFile = "memory"
	stateFile  = "state"
)

// template is a machine of one shape that has booted and was saved. Machines that go on from it are there in a fraction of
// the time of a boot, and share the memory that they do not write.
type template struct {
	cfg   Config
	spec  vm.Spec
	agent string // path of its executable
	key   boot.TemplateKey
}

// newTemplate returns the template for a machine, or an error that says why such a machine has none.
func newTemplate(cfg Config, assets *boot.Assets, spec vm.Spec) (*template, error) {
	d, ok := cfg.Driver.(vm.Shaper)
	if !ok {
		return nil, fmt.Errorf("driver %s: %w", cfg.Driver.Name(), errs.ErrUnsupported)
	}
	spec.Bays = cfg.bays()
	shape, err := d.Shape(spec)
	if err != nil {
		return nil, err
	}
	return &template{cfg: cfg, spec: spec, agent: assets.Agent, key: boot.TemplateKey{Assets: assets.Digest, Shape: shape}}, nil
}

// start starts a machine from the template, which it makes where there is none yet. A template that does not serve is
// thrown away.
func (t *template) start(ctx context.Context) (*Machine, error) {
	var m *Machine
	useless := false
	err := boot.Template(ctx, t.cfg.Boot, t.key, t.make, func(dir string) (err error) {
		spec := t.spec
		spec.MemoryFile, spec.State = filepath.Join(dir, memoryFile), filepath.Join(dir, stateFile)
		spec.Disks, spec.Eager = t.cfg.inBays(), t.cfg.wanted()
		m, err = launch(ctx, t.cfg, spec)
		useless = err != nil && ctx.Err() == nil
		return err
	})
	if useless {
		err = errors.Join(err, boot.DropTemplate(ctx, t.cfg.Boot, t.key))
	}
	if err != nil {
		return nil, err
	}
	m.wg.Go(func() { t.care(m.ctx, m.spec.State) })
	return m, nil
}

// careAfter is how long a machine has run before its template is looked after: not while it, or a program that is soon done
// with it, has better use for the processors.
const careAfter = 10 * time.Second

// care looks after the template of a machine that goes on to run.
func (t *template) care(ctx context.Context, state string) {
	timer := time.NewTimer(careAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
		t.lookAfter(ctx, state)
	case <-ctx.Done():
	}
}

// lookAfter makes the template anew where machines would go on faster from another one, and otherwise finds out whether it is
// as it was made: to read it before the machine went on from it would have taken longer than that did.
func (t *template) lookAfter(ctx context.Context, state string) {
	if i, ok := t.cfg.Driver.(vm.Imager); ok && i.Stale(state) {
		err := boot.RenewTemplate(ctx, t.cfg.Boot, t.key, t.make)
		t.cfg.Logger.Info("made the template of a machine anew, since the host has changed", "machine", t.cfg.Name, "err", err)
		return
	}
	if err := boot.VerifyTemplate(ctx, t.cfg.Boot, t.key); errors.Is(err, errs.ErrCorrupt) {
		t.cfg.Logger.Warn("the template of a machine was damaged and is removed: restart the machine, which may be too",
			"machine", t.cfg.Name, "reason", err)
	}
}

// makeLimit is how long it may take to make a template, in which a machine boots and two go on. Without one, machines boot.
const makeLimit = 2 * answerLimit

// tryLimit is how long one that has rehearsed may take for doing so again, for which it needs a second.
const tryLimit = time.Minute

// make makes a template in dir: a machine that has booted, has rehearsed, and has come to rest.
func (t *template) make(ctx context.Context, dir string) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, makeLimit, fmt.Errorf("%w: a guest has not answered for %s", errs.ErrUnavailable, makeLimit))
	defer cancel()
	r, err := t.newRehearsal(ctx, dir)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	spec := t.spec
	spec.MemoryFile, spec.Forkable = filepath.Join(dir, memoryFile), false
	settled := func(inst vm.Instance, rest bool) error {
		return newAgent(inst, nil).Settle(ctx, rest, baySerials(spec.Bays)...)
	}
	if _, ok := t.cfg.Driver.(vm.Imager); ok { // what it does for the boot is nothing for an image
		booted := filepath.Join(dir, "booted")
		if err := t.save(ctx, spec, booted, func(inst vm.Instance) error { return settled(inst, false) }); err != nil {
			return err
		}
		defer os.Remove(booted)
		spec.State, spec.OwnMemory = booted, true
	}
	state := filepath.Join(dir, stateFile)
	err = t.save(ctx, spec, state, func(inst vm.Instance) error {
		if err := r.run(ctx, inst); err != nil {
			return err
		}
		if err := r.leave(ctx, inst); err != nil {
			return err
		}
		return settled(inst, true)
	})
	if err != nil {
		return err
	}
	spec.State, spec.OwnMemory = state, false
	err = t.try(ctx, spec, r)
	if i, ok := t.cfg.Driver.(vm.Imager); ok && err != nil && ctx.Err() == nil && i.DropImage(state) == nil {
		t.cfg.Logger.Warn("the template of a machine is without an image of its hypervisor", "reason", err)
		err = t.try(ctx, spec, r)
	}
	if err != nil {
		return fmt.Errorf("go on from the template: %w", err)
	}
	if err := r.remove(); err != nil {
		return err
	}
	t.cfg.Logger.Info("made a template of a machine", "cpus", spec.CPUs, "memory", spec.Memory, "took", time.Since(began))
	return nil
}

// save starts a machine, and saves it when it is as prepare leaves it.
func (t *template) save(ctx context.Context, spec vm.Spec, state string, prepare func(vm.Instance) error) error {
	inst, err := t.cfg.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer inst.Close()
	s, ok := inst.(vm.Snapshotter)
	if !ok {
		return fmt.Errorf("save the machine: driver %s: %w", t.cfg.Driver.Name(), errs.ErrUnsupported)
	}
	if err := prepare(inst); err != nil {
		return explain(inst, err)
	}
	return s.Snapshot(ctx, state)
}

// try has a machine go on from what was saved and do the same once more, which shows that it can, and from which the driver
// learns what such machines do.
func (t *template) try(ctx context.Context, spec vm.Spec, r *rehearsal) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tryLimit, fmt.Errorf("%w: the guest has not done its rehearsal for %s", errs.ErrUnavailable, tryLimit))
	defer cancel()
	inst, err := t.cfg.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer inst.Close()
	l, ok := inst.(vm.Learner)
	if !ok {
		return nil
	}
	for _, part := range []struct {
		do    func(context.Context, vm.Instance) error
		eager bool
	}{{r.greet, false}, {r.work, true}} {
		if err := part.do(ctx, inst); err != nil {
			return explain(inst, err)
		}
		if err := l.Learn(ctx, part.eager); err != nil && !errors.Is(err, errs.ErrUnsupported) {
			return err
		}
	}
	return nil
}

// entropyBytes is what a clone gets of the host's randomness: more than the kernel's generator holds.
const entropyBytes = 64

// wake makes a machine that goes on from a template one of its own.
func (m *Machine) wake(ctx context.Context) error {
	return m.agent.Wake(ctx, wakeRequest())
}

func wakeRequest() api.WakeRequest {
	entropy := make([]byte, entropyBytes)
	_, _ = rand.Read(entropy) // never returns an error
	return api.WakeRequest{Entropy: entropy, Time: time.Now()}
}
