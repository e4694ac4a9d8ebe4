package box

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/uevent"
)

// disks knows the guest's disks by their serial numbers. It learns of them by uevents.
type disks struct {
	mu      sync.Mutex
	names   map[string]string // device name by serial
	changed chan struct{}     // closed and replaced when a disk has come
	gone    func(name string) // called when a disk has gone, without mu
}

func newDisks(gone func(string)) *disks {
	return &disks{names: make(map[string]string), changed: make(chan struct{}), gone: gone}
}

// handle takes an event of the kernel.
func (d *disks) handle(e uevent.Event) {
	switch {
	case e.Action == uevent.Rescan:
		d.scan()
	case e.Subsystem != "block" || e.Type != "disk" || strings.Contains(e.Name, "/"):
	case e.Action == "remove":
		d.remove(e.Name)
	default:
		d.add(e.Name)
	}
}

// scan looks at all disks. It is called once at the start, after events have begun to gather, and when some were lost.
func (d *disks) scan() {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return
	}
	there := make(map[string]bool)
	for _, e := range entries {
		there[e.Name()] = true
		if opens("/dev/" + e.Name()) {
			d.add(e.Name())
		}
	}
	d.mu.Lock()
	var lost []string
	for _, name := range d.names {
		if !there[name] {
			lost = append(lost, name)
		}
	}
	d.mu.Unlock()
	for _, name := range lost {
		d.remove(name)
	}
}

// opens tells whether a disk can be opened. The kernel shows a disk before it can be; its event follows when it can.
func opens(dev string) bool {
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func (d *disks) add(name string) {
	serial := diskSerial(filepath.Join("/sys/block", name))
	if serial == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[serial] == name {
		return
	}
	d.names[serial] = name
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *disks) remove(name string) {
	d.mu.Lock()
	for serial, n := range d.names {
		if n == name {
			delete(d.names, serial)
		}
	}
	d.mu.Unlock()
	d.gone(name)
}

// look returns the device name of the disk with the serial, where it is there.
func (d *disks) look(serial string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, ok := d.names[serial]
	return name, ok
}

// find returns the device name of the disk with the serial. It waits for the disk until ctx ends.
func (d *disks) find(ctx context.Context, serial string) (string, error) {
	for {
		d.mu.Lock()
		name, changed := d.names[serial], d.changed
		d.mu.Unlock()
		if name != "" {
			return name, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for disk %s: %w: attach it before creating the container: %w", serial, errs.ErrNotFound, ctx.Err())
		}
	}
}

// Settle waits until there are disks with all of the serials, and makes at once what would be made some time after a container.
func (b *Box) Settle(ctx context.Context, serials []string) error {
	for _, serial := range serials {
		if _, err := b.layers.disks.find(ctx, serial); err != nil {
			return err
		}
	}
	b.nets.refill()
	return nil
}

// diskSerial returns the serial number of the disk whose directory in sysfs is dir, "" where it has none.
func diskSerial(dir string) string {
	if b, err := os.ReadFile(dir + "/serial"); err == nil { // virtio-blk
		return strings.TrimSpace(string(b))
	}
	page, err := os.ReadFile(dir + "/device/vpd_pg80")
	if err != nil {
		return ""
	}
	return parseVPD80(page)
}

// parseVPD80 returns the serial number in a SCSI disk's vital product data page 80h: four bytes of header, of which the
// last two are the length, then the number.
func parseVPD80(page []byte) string {
	if len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	n := int(page[2])<<8 | int(page[3])
	return string(bytes.TrimSpace(bytes.Trim(page[4:min(4+n, len(page))], "\x00")))
}
