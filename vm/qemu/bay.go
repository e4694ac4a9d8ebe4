package qemu

import (
	"fmt"
	"os"
	"strconv"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// bayNode is before a bay's slot: its device, and the block node that is in it while it is empty.
const bayNode = "bay-"

func bayName(slot int) string { return bayNode + strconv.Itoa(slot) }

// emptyNode is the block node of a bay that is empty.
func emptyNode(slot int, b vm.Bay) map[string]any {
	return map[string]any{
		"driver": "null-co", "node-name": bayName(slot), "size": b.Size, "read-zeroes": true, "read-only": b.ReadOnly,
	}
}

// bayDevice is the device of a bay, with a block node in it. All that a guest asks when it finds the device is the same
// whatever is in the bay: on that rests that a machine goes on from one that had something else in it.
func bayDevice(slot int, b vm.Bay, node string) map[string]any {
	return scsiDisk(bayName(slot), node, vm.BaySerial(slot), slot-1, b.ReadOnly)
}

// bays are the devices of the bays, with the disks that are in them.
func (c command) bays() []string {
	in := make(map[int]string)
	for _, d := range c.spec.Disks {
		in[d.Slot] = diskNode + d.ID
	}
	var a []string
	for k, b := range c.spec.Bays {
		slot := k + 1
		node := in[slot]
		if node == "" {
			node = bayName(slot)
		}
		a = append(a, "-blockdev", text(emptyNode(slot, b)), "-device", text(bayDevice(slot, b, node)))
	}
	return a
}

// checkBays returns ErrInvalid for a disk that is too large for its bay.
func checkBays(spec vm.Spec) error {
	for _, d := range spec.Disks {
		if b, ok := spec.Bay(d.Slot); ok {
			if err := checkBay(b, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkBay(b vm.Bay, d vm.Disk) error {
	path := d.Path
	if d.Backing != "" { // it is as large as the disk
		path = d.Backing
	}
	st, err := os.Stat(path)
	if err != nil {
		return fileError("disk "+d.ID, path, err)
	}
	if st.Size() > b.Size {
		return fmt.Errorf("disk %s: %w: its %d bytes do not go into bay %d, which takes %d: choose another slot", d.ID, errs.ErrInvalid, st.Size(), d.Slot, b.Size)
	}
	return nil
}

// fill puts a disk into an empty bay. The device stays as it is: a guest is told nothing and asks nothing.
func (i *Instance) fill(d vm.Disk) error {
	ctx := i.life.Context()
	if err := i.qmp.execute(ctx, "blockdev-add", blockNode(d), nil); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	set := map[string]any{"path": "/machine/peripheral/" + bayName(d.Slot), "property": "drive", "value": diskNode + d.ID}
	if err := i.qmp.execute(ctx, "qom-set", set, nil); err != nil {
		i.qmp.execute(ctx, "blockdev-del", map[string]any{"node-name": diskNode + d.ID}, nil)
		return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
	}
	return nil
}

// clear takes the disk out of a bay. The device goes, so that the guest lets the disk go, and comes back empty.
func (i *Instance) clear(d vm.Disk) error {
	if err := i.remove(bayName(d.Slot), diskNode+d.ID); err != nil {
		return err
	}
	b := i.spec.Bays[d.Slot-1]
	if err := i.qmp.execute(i.life.Context(), "device_add", bayDevice(d.Slot, b, bayName(d.Slot)), nil); err != nil {
		return fmt.Errorf("bring back bay %d: %w: %w", d.Slot, errs.ErrUnavailable, err)
	}
	return nil
}
