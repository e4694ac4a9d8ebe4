package guest

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
)

// demand loads modules of the stage demand one by one, each with what it needs. Names have underscores.
type demand struct {
	mu     sync.Mutex
	paths  map[string]string   // of modules, by name
	needs  map[string][]string // paths that must be loaded before, by path, in the order of loading
	loaded map[string]bool     // by path
}

// newDemand reads which modules there are from the list and what they need from modules.dep beside them.
func newDemand(mods []bootfs.Module) (*demand, error) {
	d := &demand{paths: make(map[string]string), needs: make(map[string][]string), loaded: make(map[string]bool)}
	for _, m := range mods {
		if m.Stage == bootfs.Demand {
			d.paths[moduleName(m.Path)] = m.Path
		}
	}
	files, err := filepath.Glob(bootfs.ModulesDir + "/*/modules.dep")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read what modules need: %w", err)
		}
		d.parse(filepath.Dir(f), text)
	}
	return d, nil
}

// parse reads a modules.dep in depmod's format: a module's path, a colon, and the paths that it needs, the one to load
// first last.
func (d *demand) parse(dir string, text []byte) {
	for line := range bytes.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
		if !ok {
			continue
		}
		var needs []string
		for _, n := range strings.Fields(rest) {
			needs = append([]string{path.Join(dir, n)}, needs...)
		}
		d.needs[path.Join(dir, name)] = needs
	}
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// load loads modules by their names. One that is not in the initramfs is taken to be built into the kernel.
func (d *demand) load(names ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		file, ok := d.paths[name]
		if !ok {
			continue
		}
		for _, f := range append(append([]string(nil), d.needs[file]...), file) {
			if d.loaded[f] {
				continue
			}
			if err := loadModules([]bootfs.Module{{Stage: bootfs.Demand, Path: f}}); err != nil {
				return err
			}
			d.loaded[f] = true
		}
	}
	return nil
}

// driverOf returns the module that drives a virtio device, by the number of its kind in the virtio specification. It has
// those that only some hypervisors have; the others are loaded in any case.
func driverOf(kind string) string {
	switch kind {
	case "0x0002":
		return "virtio_blk"
	case "0x0005":
		return "virtio_balloon"
	}
	return ""
}

// loadDrivers loads the modules of the virtio devices that are there.
func (d *demand) loadDrivers() error {
	kinds, err := filepath.Glob("/sys/bus/virtio/devices/*/device")
	if err != nil {
		return err
	}
	for _, k := range kinds {
		b, err := os.ReadFile(k)
		if err != nil {
			continue // it has just gone
		}
		if name := driverOf(strings.TrimSpace(string(b))); name != "" {
			if err := d.load(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// parameter returns the value of a parameter on the kernel's command line, "" where it is not there.
func parameter(cmdline, name string) string {
	for word := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(word, name); ok {
			return v
		}
	}
	return ""
}
