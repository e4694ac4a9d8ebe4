package machine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

// readOnlyLater is a driver whose machines take disks that can be written at their start only.
type readOnlyLater struct{ *vmtest.Fake }

func (d readOnlyLater) Capabilities() vm.Capabilities {
	c := d.Fake.Capabilities()
	c.AttachWritable = false
	return c
}

// slow is a driver whose machines attach a disk when they are told to.
type slow struct {
	*vmtest.Fake
	begun chan string // gets the IDs of disks
	let   chan error  // what comes of them
}

func (d *slow) Start(ctx context.Context, spec vm.Spec) (vm.Instance, error) {
	inst, err := d.Fake.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &slowInstance{inst.(*vmtest.FakeInstance), d}, nil
}

type slowInstance struct {
	*vmtest.FakeInstance
	d *slow
}

func (i *slowInstance) AttachDisk(ctx context.Context, disk vm.Disk) error {
	i.d.begun <- disk.ID
	select {
	case err := <-i.d.let:
		if err != nil {
			return err
		}
		return i.FakeInstance.AttachDisk(ctx, disk)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rig is a machine with a data disk whose guest notes what it is told of that.
type rig struct {
	cfg  Config
	fake *vmtest.Fake
	told []string
}

func newRig(t *testing.T) *rig { return newRigOf(t, nil) }

// newRigOf is newRig with a guest that knows commands.
func newRigOf(t *testing.T, commands map[string]agenttest.Command) *rig {
	agent := agenttest.New(commands)
	t.Cleanup(agent.Close)
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	r := &rig{}
	r.fake = &vmtest.Fake{Ports: map[uint32]func(*vmtest.FakeInstance, net.Conn){
		api.Port: func(_ *vmtest.FakeInstance, c net.Conn) { agent.Serve(c) },
	}}
	agent.OnConfigure = func(req api.ConfigureRequest) error { r.told = append(r.told, req.DataDisk); return nil }
	agent.OnPoweroff = func() { r.fake.Started()[0].PowerOff() }
	r.cfg = Config{
		Name: "m", Driver: r.fake, Logger: slog.New(slog.DiscardHandler), dataDisk: vm.Disk{ID: dataDiskID, Path: path},
	}
	return r
}

func (r *rig) launch(t *testing.T) *Machine {
	m, err := launch(t.Context(), r.cfg, r.cfg.spec(&boot.Assets{Arch: "amd64", Kernel: r.cfg.dataDisk.Path}))
	require.NoError(t, err)
	t.Cleanup(func() { m.Shutdown(context.Background()) })
	return m
}

// TestDataDiskGoesInWhenItCan starts machines with a data disk on drivers that can add it while they run, and on such as
// cannot, for somebody who needs it and for nobody: the guest is told of it in any case, and it is there once.
func TestDataDiskGoesInWhenItCan(t *testing.T) {
	for _, tt := range []struct {
		name          string
		later, wanted bool
	}{
		{name: "from the start"}, {name: "when it is used", later: true}, {name: "for who waits", later: true, wanted: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s := &slow{Fake: r.fake, begun: make(chan string, 1), let: make(chan error, 1)}
			if r.cfg.Driver = s; !tt.later {
				r.cfg.Driver = readOnlyLater{r.fake}
			}
			r.cfg.Wanted = func() bool { return tt.wanted }
			m := r.launch(t)
			inst := r.fake.Started()[0]
			require.Equal(t, tt.later, len(inst.Spec().Disks) == 0)
			require.Equal(t, []string{dataDiskID}, r.told)
			require.True(t, m.HasDisk())
			if tt.wanted {
				require.Equal(t, dataDiskID, <-s.begun)
			} else {
				require.Empty(t, s.begun)
				require.Equal(t, !tt.later, len(inst.Disks()) == 1)
			}
			s.let <- nil
			require.NoError(t, m.UseDisk(t.Context()))
			require.NoError(t, m.UseDisk(t.Context()), "it is there already")
			require.Equal(t, map[string]vm.Disk{dataDiskID: r.cfg.dataDisk}, inst.Disks())
			require.NoError(t, m.Shutdown(t.Context()))
			require.ErrorIs(t, m.UseDisk(t.Context()), errs.ErrClosed)
		})
	}
}

// TestMachineWithoutADisk has none to use.
func TestMachineWithoutADisk(t *testing.T) {
	r := newRig(t)
	r.cfg.Wanted = func() bool { return true }
	path := r.cfg.dataDisk.Path
	r.cfg.dataDisk = vm.Disk{}
	m, err := launch(t.Context(), r.cfg, r.cfg.spec(&boot.Assets{Arch: "amd64", Kernel: path}))
	require.NoError(t, err)
	defer m.Shutdown(context.Background())
	require.NoError(t, m.UseDisk(t.Context()))
	require.Equal(t, []string{""}, r.told)
	require.Empty(t, r.fake.Started()[0].Disks())
}

// TestUsersOfADisk: those who wait for one attachment get its error, whoever of them has begun it and left, and the next one
// tries again.
func TestUsersOfADisk(t *testing.T) {
	r := newRig(t)
	s := &slow{Fake: r.fake, begun: make(chan string), let: make(chan error)}
	r.cfg.Driver = s
	m := r.launch(t)
	first, leave := context.WithCancel(t.Context())
	got := make(chan error)
	go func() { got <- m.UseDisk(first) }()
	<-s.begun
	others, err := m.beginAttach(r.cfg.dataDisk)
	require.NoError(t, err)
	leave()
	require.ErrorIs(t, <-got, context.Canceled)
	broken := errors.New("no such file")
	s.let <- broken
	<-others[0].done
	require.ErrorIs(t, others[0].err, broken)

	go func() { got <- m.UseDisk(t.Context()) }()
	<-s.begun
	s.let <- broken
	require.EqualError(t, <-got, "attach the data disk: no such file")
	require.Empty(t, r.fake.Started()[0].Disks())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { require.NoError(t, m.UseDisk(t.Context())) })
	}
	<-s.begun
	s.let <- nil
	wg.Wait()
	require.Len(t, r.fake.Started()[0].Disks(), 1)
}

// TestShutdownWhileTheDiskIsAttached ends the attachment, and with it those who wait for it.
func TestShutdownWhileTheDiskIsAttached(t *testing.T) {
	r := newRig(t)
	s := &slow{Fake: r.fake, begun: make(chan string), let: make(chan error)}
	r.cfg.Driver = s
	m := r.launch(t)
	got := make(chan error)
	go func() { got <- m.UseDisk(t.Context()) }()
	<-s.begun
	require.NoError(t, m.Shutdown(t.Context()))
	require.Error(t, <-got)
}
