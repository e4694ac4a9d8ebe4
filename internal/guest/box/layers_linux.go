package box

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// layersDir has one mount per layer, under a short name: the paths of all layers of a container must fit into one page.
const layersDir = "/run/l"

// layers mounts the disks of layers, each once, read-only. A layer stays mounted while its disk is there, whoever uses
// it: mounting it again would cost each container more than the mount is worth. When its disk goes, it is unmounted.
type layers struct {
	disks  *disks
	shared shared

	mu   sync.Mutex
	all  map[string]*layer // by serial
	next int
}

type layer struct {
	ready  chan struct{} // closed when dir or err is set
	device string        // or what tells a file from others
	dir    string
	err    error
}

func newLayers() *layers {
	l := &layers{all: make(map[string]*layer)}
	l.disks = newDisks(l.gone)
	return l
}

// get returns the directory where a layer is mounted. It waits for its disk until ctx ends.
func (l *layers) get(ctx context.Context, serial string) (string, error) {
	device, file, err := l.find(ctx, serial)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	m := l.all[serial]
	old := m
	mine := m == nil || m.device != device
	if mine {
		m = &layer{ready: make(chan struct{}), device: device}
		l.all[serial] = m
		l.next++
		m.dir = filepath.Join(layersDir, strconv.Itoa(l.next))
	}
	l.mu.Unlock()
	if mine {
		if old != nil {
			old.unmount()
		}
		if file != "" {
			m.err = mountFile(file, m.dir)
		} else {
			m.err = mountLayer(device, m.dir)
		}
		if m.err != nil {
			l.forget(serial, m)
		}
		close(m.ready)
	}
	select {
	case <-m.ready:
		return m.dir, m.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// find returns the disk with the serial, or the file where it is one. It waits for a disk until ctx ends.
func (l *layers) find(ctx context.Context, serial string) (device, file string, err error) {
	if device, ok := l.disks.look(serial); ok {
		return device, "", nil
	}
	file, identity, ok, err := l.shared.find(serial)
	if ok || err != nil {
		return identity, file, err
	}
	device, err = l.disks.find(ctx, serial)
	return device, "", err
}

// unmount unmounts a layer whose disk is not the one any more that it was.
func (m *layer) unmount() {
	<-m.ready
	if m.err == nil {
		_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		os.Remove(m.dir)
	}
}

func (l *layers) forget(serial string, m *layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[serial] == m {
		delete(l.all, serial)
	}
}

func mountLayer(device, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("mount layer: %w", err)
	}
	err := unix.Mount("/dev/"+device, dir, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOATIME, "")
	if err != nil {
		os.Remove(dir)
		if err == unix.EINVAL || err == unix.EUCLEAN {
			return fmt.Errorf("mount layer on %s: %w: it is not an ext4 file system: %w", device, errs.ErrCorrupt, err)
		}
		return fmt.Errorf("mount layer on %s: %w", device, err)
	}
	return nil
}

// gone unmounts the layers of a disk that is not there any more. Containers that use them get I/O errors.
func (l *layers) gone(device string) {
	l.mu.Lock()
	var old []*layer
	for serial, m := range l.all {
		if m.device == device {
			delete(l.all, serial)
			old = append(old, m)
		}
	}
	l.mu.Unlock()
	for _, m := range old {
		m.unmount()
	}
}

// close unmounts all layers.
func (l *layers) close() {
	l.mu.Lock()
	all := l.all
	l.all = make(map[string]*layer)
	l.mu.Unlock()
	for _, m := range all {
		m.unmount()
	}
	l.shared.close()
}
