package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

// withBays is a driver whose machines have bays.
type withBays struct {
	*vmtest.Fake
	broken bool // the bays take nothing
}

func (d withBays) Capabilities() vm.Capabilities {
	c := d.Fake.Capabilities()
	c.Bays = true
	return c
}

func (d withBays) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	spec.Bays = nil
	inst, err := d.Fake.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return bayedInstance{inst.(*vmtest.FakeInstance), d.broken}, nil
}

type bayedInstance struct {
	*vmtest.FakeInstance
	broken bool
}

func (i bayedInstance) AttachDisk(ctx context.Context, d vm.Disk) error {
	if d.Slot != 0 && i.broken {
		return errs.ErrUnavailable
	}
	return i.FakeInstance.AttachDisk(ctx, d)
}

// launchBayed starts a machine as one that goes on from a template is started.
func (r *rig) launchBayed(t *testing.T) *Machine {
	spec := r.cfg.spec(&boot.Assets{Arch: "amd64", Kernel: r.cfg.dataDisk.Path})
	spec.Bays, spec.Disks = r.cfg.bays(), r.cfg.inBays()
	m, err := launch(t.Context(), r.cfg, spec)
	require.NoError(t, err)
	t.Cleanup(func() { m.Shutdown(context.Background()) })
	return m
}

// TestDisksGoIntoBays gives a machine more disks than it has bays for, all at once and each twice.
func TestDisksGoIntoBays(t *testing.T) {
	r := newRig(t)
	r.cfg.Driver = withBays{r.fake, false}
	require.Len(t, r.cfg.bays(), 1+layerBays)
	m := r.launchBayed(t)
	require.Equal(t, vm.BaySerial(1), m.Serial(dataDiskID))
	require.Equal(t, []string{vm.BaySerial(1)}, r.told)
	require.NoError(t, m.UseDisk(t.Context()), "it is there")

	layer := func(n int) vm.Disk {
		return vm.Disk{ID: fmt.Sprint("layer", n), Path: r.cfg.dataDisk.Path, ReadOnly: true}
	}
	lost := layer(0)
	lost.Path = filepath.Join(t.TempDir(), "none")
	require.ErrorIs(t, m.AttachDisks(t.Context(), lost), errs.ErrNotFound)
	var wg sync.WaitGroup
	for n := range 2 * (layerBays + 3) {
		wg.Go(func() {
			if err := m.AttachDisks(t.Context(), layer(n/2)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	serials, added := make(map[string]bool), 0
	for n := range layerBays + 3 {
		s := m.Serial(layer(n).ID)
		require.False(t, serials[s], "two disks in one place")
		if serials[s] = true; s == layer(n).ID {
			added++
		}
	}
	require.Equal(t, 3, added, "the bay of a disk that could not be attached is empty again")
	require.Equal(t, "unknown", m.Serial("unknown"))
	w := vm.Disk{ID: "writable", Path: lost.Path}
	require.NoError(t, os.WriteFile(w.Path, nil, 0o600))
	require.NoError(t, m.AttachDisks(t.Context(), w))
	require.Equal(t, w.ID, m.Serial(w.ID), "the only bay for such disks has the data disk")
}

// TestBaysThatTakeNothing: the disk is added as a device.
func TestBaysThatTakeNothing(t *testing.T) {
	r := newRig(t)
	r.cfg.Driver = withBays{r.fake, true}
	m := r.launchBayed(t)
	d := vm.Disk{ID: "layer", Path: r.cfg.dataDisk.Path, ReadOnly: true}
	require.NoError(t, m.AttachDisks(t.Context(), d))
	require.Equal(t, d.ID, m.Serial(d.ID))
	require.Equal(t, d, r.fake.Started()[0].Disks()[d.ID])
}

// TestDriverWithoutBays has none in its templates.
func TestDriverWithoutBays(t *testing.T) {
	r := newRig(t)
	require.Empty(t, r.cfg.bays())
	require.Empty(t, r.cfg.inBays())
}
