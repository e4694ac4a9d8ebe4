package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent"
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

// template is a machine of one shape that has booted and was saved. Machines that go on from it are there in a tenth of
// the time of a boot, and share the memory that they do not write.
type template struct {
	cfg  Config
	spec vm.Spec
	key  boot.TemplateKey
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
	return &template{cfg: cfg, spec: spec, key: boot.TemplateKey{Assets: assets.Digest, Shape: shape}}, nil
}

// start starts a machine from the template, which it makes where there is none yet. A template that does not serve is
// thrown away.
func (t *template) start(ctx context.Context) (*Machine, error) {
	dir, err := boot.Template(ctx, t.cfg.Boot, t.key, t.make)
	if err != nil {
		return nil, err
	}
	spec := t.spec
	spec.MemoryFile, spec.State = filepath.Join(dir, memoryFile), filepath.Join(dir, stateFile)
	spec.Disks = t.cfg.inBays()
	m, err := launch(ctx, t.cfg, spec)
	if err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, boot.DropTemplate(ctx, t.cfg.Boot, t.key))
		}
		return nil, err
	}
	m.wg.Go(func() { t.verify(m.ctx) })
	return m, nil
}

// verifyAfter is how long a machine has run before its template is read whole: not while it, or a program that is soon done
// with it, has better use for the processors.
const verifyAfter = 10 * time.Second

// verify finds out whether the template is as it was made. The machine has gone on from it already: reading it first would
// take longer than the machine did.
func (t *template) verify(ctx context.Context) {
	timer := time.NewTimer(verifyAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	if err := boot.VerifyTemplate(ctx, t.cfg.Boot, t.key); errors.Is(err, errs.ErrCorrupt) {
		t.cfg.Logger.Warn("the template of a machine was damaged and is removed: restart the machine, which may be too",
			"machine", t.cfg.Name, "reason", err)
	}
}

// make boots a machine, lets it come to rest, and saves it in dir.
func (t *template) make(ctx context.Context, dir string) error {
	began := time.Now()
	spec := t.spec
	spec.MemoryFile, spec.Forkable = filepath.Join(dir, memoryFile), false
	inst, err := t.cfg.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer inst.Close()
	s, ok := inst.(vm.Snapshotter)
	if !ok {
		return fmt.Errorf("save the machine: driver %s: %w", t.cfg.Driver.Name(), errs.ErrUnsupported)
	}
	if err := rehearse(ctx, newAgent(inst, nil), baySerials(spec.Bays)); err != nil {
		return explain(inst, err)
	}
	if err := s.Snapshot(ctx, filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	t.cfg.Logger.Info("made a template of a machine", "cpus", spec.CPUs, "memory", spec.Memory, "took", time.Since(began))
	return nil
}

// rehearse has the guest do what each clone will do first, so that it has done it before, and waits until it has found its
// disks and is at rest.
func rehearse(ctx context.Context, guest *agent.Client, disks []string) error {
	if _, err := guest.Ping(ctx); err != nil {
		return err
	}
	if err := guest.Wake(ctx, wakeRequest()); err != nil {
		return err
	}
	if err := guest.Configure(ctx, api.ConfigureRequest{Time: time.Now()}); err != nil {
		return err
	}
	listening, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := guest.Events(listening); err != nil {
		return err
	}
	cancel()
	return guest.Settle(ctx, disks...)
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
