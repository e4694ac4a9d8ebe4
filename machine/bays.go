package machine

import (
	"errors"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// layerBays is how many disks that cannot be written a machine that goes on from a template takes without its guest having
// to look for them: as many as the layers of most images. Each costs the boot of a template some 10 ms and the guest 100 KB.
const layerBays = 8

// bays are what a machine that goes on from a template has for the disks it is given. Their sizes are those of the largest
// disks, so that one template is good for disks of all sizes. One that boots finds a disk when it gets it, and has none.
func (c *Config) bays() []vm.Bay {
	if !c.Driver.Capabilities().Bays {
		return nil
	}
	var bays []vm.Bay
	if c.dataDisk.Path != "" {
		bays = append(bays, vm.Bay{Size: vm.MaxBaySize})
	}
	for range layerBays {
		bays = append(bays, vm.Bay{Size: vm.MaxBaySize, ReadOnly: true})
	}
	return bays
}

// inBays are the disks that a machine from a template has from the start.
func (c *Config) inBays() []vm.Disk {
	if c.dataDisk.Path == "" || !c.Driver.Capabilities().Bays {
		return nil
	}
	d := c.dataDisk
	d.Slot = 1
	return []vm.Disk{d}
}

// baySerials are by what a guest finds the bays.
func baySerials(bays []vm.Bay) []string {
	var serials []string
	for i := range bays {
		serials = append(serials, vm.BaySerial(i+1))
	}
	return serials
}

// freeBay returns the slot of an empty bay for a disk, 0 where there is none. m.mu is held.
func (m *Machine) freeBay(d vm.Disk) int {
	used := make(map[int]bool, len(m.disks))
	for _, a := range m.disks {
		used[a.slot] = true
	}
	for i, b := range m.spec.Bays {
		if slot := i + 1; b.ReadOnly == d.ReadOnly && !used[slot] {
			return slot
		}
	}
	return 0
}

// Serial returns the serial number by which the guest finds a disk that is attached. One that is not is found by its ID.
func (m *Machine) Serial(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.disks[id]; a != nil && a.slot != 0 {
		return vm.BaySerial(a.slot)
	}
	return id
}

// attach gives the machine a disk, in a bay where it has one for it.
func (m *Machine) attach(att vm.DiskAttacher, d vm.Disk, a *attachment) {
	defer close(a.done)
	d.Slot = a.slot
	err := att.AttachDisk(m.ctx, d)
	if d.Slot != 0 && errors.Is(err, errs.ErrUnavailable) && m.ctx.Err() == nil {
		m.cfg.Logger.Warn("a bay takes no disk: it is added as a device", "machine", m.cfg.Name, "disk", d.ID, "bay", d.Slot, "reason", err)
		m.mu.Lock()
		a.slot, d.Slot = 0, 0
		m.mu.Unlock()
		err = att.AttachDisk(m.ctx, d)
	}
	if a.err = err; err != nil {
		m.mu.Lock()
		delete(m.disks, d.ID) // the next one who asks tries again
		m.mu.Unlock()
	}
}
