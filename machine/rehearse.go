package machine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/disk"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// rehearsal is what the first minutes of a machine are made of: its greeting, and a container with a command that is executed in it,
// on disks of its own. What runs for the first time costs an emulated processor ten times as much as later, since it has to
// be translated, and a guest does much else only once. A machine that has rehearsed is saved with all of that.
type rehearsal struct {
	arch  string
	data  *vm.Disk // nil where machines of the kind have no data disk
	layer *vm.Disk // with the command; nil where there are no bays for disks, and so no container
	nic   bool
}

// newRehearsal makes the disks of a rehearsal for machines of a spec, in a directory.
func (t *template) newRehearsal(ctx context.Context, dir string) (*rehearsal, error) {
	r := &rehearsal{arch: t.spec.Arch, nic: t.spec.NIC}
	for i, b := range t.spec.Bays {
		slot := i + 1
		switch {
		case !b.ReadOnly && r.data == nil:
			r.data = &vm.Disk{ID: "rehearsal-data", Path: filepath.Join(dir, "rehearsal-data"), Slot: slot}
			if err := disk.Create(ctx, t.cfg.diskCache(), r.data.Path, t.cfg.DiskSize, disk.Options{Temporary: true}); err != nil {
				return nil, err
			}
		case b.ReadOnly && r.layer == nil:
			r.layer = &vm.Disk{ID: "rehearsal-layer", Path: filepath.Join(dir, "rehearsal-layer"), Slot: slot, ReadOnly: true}
			if err := writeLayer(r.layer.Path, t.agent); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// programDir is where the command is in its layer.
const programDir = "bin"

// writeLayer makes a layer that has the agent as the command of a rehearsal.
func writeLayer(path, agent string) error {
	program, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: programDir + "/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: programDir + "/" + api.RehearsalCommand, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))},
	} {
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	_, err = w.Write(program)
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(tar2ext4.ConvertTarToExt4(&b, f), f.Close())
}

// disks are those that there are.
func (r *rehearsal) disks() (all []vm.Disk) {
	for _, d := range []*vm.Disk{r.data, r.layer} {
		if d != nil {
			all = append(all, *d)
		}
	}
	return all
}

// remove removes the files of the disks.
func (r *rehearsal) remove() error {
	var all []error
	for _, d := range r.disks() {
		all = append(all, os.Remove(d.Path))
	}
	return errors.Join(all...)
}

// run has a machine do all of it. The disks stay in their bays.
func (r *rehearsal) run(ctx context.Context, inst vm.Instance) error {
	if err := r.greet(ctx, inst); err != nil {
		return err
	}
	return r.work(ctx, inst)
}

// greet does what is done with every machine that goes on.
func (r *rehearsal) greet(ctx context.Context, inst vm.Instance) error {
	guest := newAgent(inst, nil)
	if _, err := guest.Ping(ctx); err != nil {
		return err
	}
	if err := guest.Wake(ctx, wakeRequest()); err != nil {
		return err
	}
	for _, d := range r.disks() {
		if err := inst.(vm.DiskAttacher).AttachDisk(ctx, d); err != nil {
			return err
		}
	}
	req := api.ConfigureRequest{Time: time.Now(), Hostname: rehearsalName}
	if r.data != nil {
		req.DataDisk, req.DiskLater = vm.BaySerial(r.data.Slot), true
	}
	if err := guest.Configure(ctx, req); err != nil {
		return err
	}
	listening, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err := guest.Events(listening)
	return err
}

// leave lets the guest be as if there had been no rehearsal, and takes the disks out.
func (r *rehearsal) leave(ctx context.Context, inst vm.Instance) error {
	if err := newAgent(inst, nil).LeaveDisk(ctx); err != nil {
		return err
	}
	for _, d := range r.disks() {
		if err := inst.(vm.DiskAttacher).DetachDisk(ctx, d.ID); err != nil {
			return err
		}
	}
	return nil
}

const rehearsalName = "rehearsal"

// work runs a container from its creation to its removal, and a command in it. It is as most are: with a network of
// which nobody is at the other end, and a filter of system calls.
func (r *rehearsal) work(ctx context.Context, inst vm.Instance) error {
	if r.layer == nil {
		return nil
	}
	guest := newAgent(inst, nil)
	filter, err := seccomp.Default(r.arch, nil)
	if err != nil {
		return err
	}
	process := api.Process{Args: []string{api.RehearsalCommand}, Env: []string{"PATH=/" + programDir}, Seccomp: filter}
	req := api.CreateRequest{
		ID: rehearsalName, Layers: []api.Layer{{Serial: vm.BaySerial(r.layer.Slot)}}, Process: process,
	}
	req.Process.Stdin = true
	if r.nic { // addresses that are nobody's: RFC 5737
		req.Network = api.Network{Mode: api.NetworkOwn, Nameservers: []string{"192.0.2.1"}, Interfaces: []api.Interface{{
			Name: api.FirstInterface, VLAN: api.FirstVLAN, MAC: "02:61:c0:00:02:02", MTU: api.LargestMTU,
			Addresses: []string{"192.0.2.2/24"}, Gateways: []string{"192.0.2.1"},
		}}}
	}
	if err := guest.Create(ctx, req); err != nil {
		return err
	}
	p, err := guest.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: true}, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := guest.Start(ctx, api.StartRequest{ID: req.ID}); err != nil {
		return err
	}
	x, err := guest.Exec(ctx, api.ExecRequest{ID: req.ID, ExecID: rehearsalName, Process: process}, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	defer x.Close()
	if err := wentWell(x.Wait(ctx)); err != nil {
		return err
	}
	_ = p.Stdin().Close() // never an error
	if err := wentWell(p.Wait(ctx)); err != nil {
		return err
	}
	return guest.Remove(ctx, api.RemoveRequest{ID: req.ID, Force: true})
}

func wentWell(exit api.Exit, err error) error {
	if err == nil && exit != (api.Exit{}) {
		err = fmt.Errorf("%w: the command ended with exit code %d", errs.ErrUnavailable, exit.Code)
	}
	return err
}
