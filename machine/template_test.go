package machine

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// saver is a driver whose machines can be saved, and learn.
type saver struct {
	withBays
	stale   bool
	saved   atomic.Int32
	resumed atomic.Int32
	learned atomic.Int32
	eager   atomic.Int32
	broken  atomic.Bool // machines do not go on from an image
}

func (d *saver) Shape(vm.Spec) (string, error) { return "shape", nil }
func (d *saver) Stale(string) bool             { return d.stale }

func (d *saver) DropImage(string) error {
	if !d.broken.Swap(false) {
		return errs.ErrNotFound
	}
	return nil
}

func (d *saver) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	if spec.State != "" {
		d.resumed.Add(1)
	}
	disks := spec.Disks
	spec.MemoryFile, spec.State, spec.OwnMemory, spec.Disks = "", "", false, nil
	inst, err := d.withBays.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	for _, disk := range disks {
		if err := inst.(vm.DiskAttacher).AttachDisk(ctx, disk); err != nil {
			return nil, err
		}
	}
	return saverInstance{inst.(bayedInstance), d}, nil
}

type saverInstance struct {
	bayedInstance
	d *saver
}

func (i saverInstance) Snapshot(_ context.Context, path string) error {
	i.d.saved.Add(1)
	if len(i.Disks()) > 0 {
		return errs.ErrConflict
	}
	return os.WriteFile(path, nil, 0o600)
}

func (i saverInstance) Learn(_ context.Context, eager bool) error {
	if i.d.broken.Load() {
		return errs.ErrUnavailable
	}
	i.d.learned.Add(1)
	if eager {
		i.d.eager.Add(1)
	}
	return nil
}

// TestTemplateIsMadeTriedAndRenewed starts machines from a template: it is made once, tried once, and made anew where the
// driver says that another one would be faster.
func TestTemplateIsMadeTriedAndRenewed(t *testing.T) {
	tmpl, r, ran := newRehearsing(t, 0)
	d := &saver{withBays: withBays{r.fake, false}}
	tmpl.cfg.Driver = d
	tmpl.cfg.Boot = boot.Config{Dir: t.TempDir(), Arch: "amd64"}
	tmpl, err := newTemplate(tmpl.cfg, &boot.Assets{Digest: "digest", Agent: tmpl.agent}, vm.Spec{Arch: "amd64", Kernel: r.cfg.dataDisk.Path})
	require.NoError(t, err)
	counts := func(made, started int) {
		t.Helper()
		require.EqualValues(t, 2*made, d.saved.Load(), "after the boot and after the rehearsal")
		require.EqualValues(t, 2*made, d.learned.Load())
		require.EqualValues(t, made, d.eager.Load(), "the machine has had work then")
		require.EqualValues(t, 2*made+started, d.resumed.Load())
		require.EqualValues(t, 2*2*made, ran.Load(), "two rehearsals for each, with a container and a command in it")
	}
	start := func() *Machine {
		m, err := tmpl.start(t.Context())
		require.NoError(t, err)
		require.Equal(t, vm.BaySerial(1), m.Serial(dataDiskID))
		t.Cleanup(func() { m.inst.Close(); m.Shutdown(context.Background()) })
		return m
	}
	start()
	counts(1, 1)
	m := start()
	counts(1, 2)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(m.spec.State), "*"))
	require.NoError(t, err)
	for i, f := range files {
		files[i] = filepath.Base(f)
	}
	require.Equal(t, []string{"record.json", "state", "verified"}, files, "nothing of the rehearsal is left")

	tmpl.lookAfter(t.Context(), m.spec.State)
	counts(1, 2)
	d.stale = true
	tmpl.lookAfter(t.Context(), m.spec.State)
	counts(2, 2)
	start()
	counts(2, 3)
}

// A template whose image does not work has none.
func TestTemplateWithoutAnImage(t *testing.T) {
	tmpl, r, _ := newRehearsing(t, 0)
	d := &saver{withBays: withBays{r.fake, false}}
	d.broken.Store(true)
	tmpl.cfg.Driver = d
	tmpl.spec.Kernel, tmpl.spec.Bays = r.cfg.dataDisk.Path, (&Config{Driver: d, dataDisk: r.cfg.dataDisk}).bays()
	require.NoError(t, tmpl.make(t.Context(), t.TempDir()))
	require.False(t, d.broken.Load())
	require.EqualValues(t, 2, d.learned.Load(), "the second try has gone well")
}
