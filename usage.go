package arcbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/arcboxlabs/arcbox-go/internal/image"
	"github.com/arcboxlabs/arcbox-go/lifecycle"
)

// PruneImagesOptions says which images PruneImages removes. One that a container was made from, in any program, is never
// removed. The zero value removes images that have no name.
type PruneImagesOptions struct {
	// Keep removes no image, only what belongs to none, and layer images where LayerImages is set.
	Keep bool
	// All removes images that have a name too.
	All bool
	// Unused removes only images that are in the store for that long and of which no container was made meanwhile. 0 is
	// any time.
	Unused time.Duration
	// Labels removes only images that have all of them, as "key" or "key=value".
	Labels []string
	// Budget is how many bytes the store may take on disk: of the images that may go, those that were used longest ago go
	// first, and only as many as must. 0 is no budget: all go.
	Budget int64
	// LayerImages also removes the file systems made of the layers of images that have no container. They are made
	// again when they are needed, in a second for each 100 MB or so, without a registry.
	LayerImages bool
}

// PrunedImages is what PruneImages removed.
type PrunedImages struct {
	Images []ImageInfo // in the order in which they went
	Bytes  int64       // that the disk has back
}

// PruneImages removes images, and the content of the store that belongs to none: what was removed, what a failed or
// cancelled call left. It leaves alone what calls under way in other programs need, and waits for none of them.
//
// Options that contradict each other are ErrInvalid. A record in the store that cannot be read is ErrCorrupt, and nothing
// is removed, since what it kept is not known.
func (r *Runtime) PruneImages(ctx context.Context, opts PruneImagesOptions) (PrunedImages, error) {
	return call(ctx, r, "PruneImages", "", func(ctx context.Context) (PrunedImages, error) {
		p, err := r.images.Prune(ctx, image.PruneOptions(opts))
		for _, img := range p.Images {
			r.publishImage(event.ImageRemoved, img, "")
		}
		return PrunedImages{Images: imageInfos(p.Images), Bytes: p.Bytes}, err
	})
}

// Usage is what a kind of thing takes on disk.
type Usage struct {
	Count       int   // how many there are
	Active      int   // how many of them somebody uses
	Bytes       int64 // on disk: of a sparse file what is there of it
	Reclaimable int64 // how many of the bytes can be had back; DiskUsage says by what
}

// DiskUsage is what a data directory and the boot cache take on disk.
type DiskUsage struct {
	// Images are the images, active where a container was made from one, with all they take: Blobs and LayerImages
	// together. PruneImages with All and LayerImages gives back what is reclaimable.
	Images Usage
	// Blobs are the manifests, configurations and layers of images as they came.
	Blobs Usage
	// LayerImages are the file systems made of layers.
	LayerImages Usage
	// Containers are the records of this program's containers, active where they run. What they write is on the disks of
	// the machines.
	Containers Usage
	// Machines are the disks of machines and whatever else they keep, active where they run in this program. What is
	// reclaimable was left by programs that were killed, and goes when the next machine needs a directory.
	Machines Usage
	// Boot is the cache of kernels, agents and initramfs. It cleans itself of what nobody used for a month.
	Boot Usage
	// Templates are saved machines in the same cache.
	Templates Usage
}

// Total is all bytes together.
func (d DiskUsage) Total() int64 {
	return d.Images.Bytes + d.Containers.Bytes + d.Machines.Bytes + d.Boot.Bytes + d.Templates.Bytes
}

// DiskUsage finds out what is on disk. It boots nothing. A record of an image that cannot be read is ErrCorrupt.
func (r *Runtime) DiskUsage(ctx context.Context) (DiskUsage, error) {
	return call(ctx, r, "DiskUsage", "", func(ctx context.Context) (DiskUsage, error) {
		img, err := r.images.DiskUsage(ctx)
		if err != nil {
			return DiskUsage{}, err
		}
		d := DiskUsage{Images: Usage(img.Images), Blobs: Usage(img.Blobs), LayerImages: Usage(img.LayerImages)}
		for _, fill := range []func(context.Context, *DiskUsage) error{r.containerUsage, r.machineUsage, r.bootUsage} {
			if err := fill(ctx, &d); err != nil {
				return DiskUsage{}, fmt.Errorf("find out what is on disk: %w", err)
			}
		}
		return d, nil
	})
}

func (r *Runtime) containerUsage(ctx context.Context, d *DiskUsage) (err error) {
	infos, err := r.containers.List(container.Filter{})
	if err != nil {
		return err
	}
	d.Containers.Count = len(infos)
	for _, i := range infos {
		if i.State == container.StateRunning || i.State == container.StatePaused {
			d.Containers.Active++
		}
	}
	d.Containers.Bytes, err = treeSize(ctx, filepath.Join(r.cfg.DataDir, "containers"))
	return err
}

// machineUsage counts the directories of machines. Those of programs that were killed have a name that begins with a dot,
// and a lock that nobody holds.
func (r *Runtime) machineUsage(ctx context.Context, d *DiskUsage) error {
	dirs, err := filepath.Glob(filepath.Join(r.cfg.DataDir, "machines", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		size, err := treeSize(ctx, dir)
		if err != nil {
			return err
		}
		d.Machines.Bytes += size
		if !strings.HasPrefix(filepath.Base(dir), ".") {
			d.Machines.Count++
		} else if free, err := fsx.TryLock(filepath.Join(dir, "lock"), true); err == nil {
			free()
			d.Machines.Reclaimable += size
		}
	}
	for _, m := range r.machines.List() {
		if m.State == lifecycle.Ready {
			d.Machines.Active++
		}
	}
	return nil
}

func (r *Runtime) bootUsage(ctx context.Context, d *DiskUsage) error {
	for kind, to := range map[string]*Usage{
		"kernels": &d.Boot, "agents": &d.Boot, "initramfs": &d.Boot, "packages": &d.Boot, "disks": &d.Boot, "sources": &d.Boot,
		"templates": &d.Templates,
	} {
		dirs, err := filepath.Glob(filepath.Join(r.cfg.Boot.Dir, kind, "*"))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			size, err := treeSize(ctx, dir)
			if err != nil {
				return err
			}
			to.Count, to.Bytes = to.Count+1, to.Bytes+size
		}
	}
	return nil
}

// treeSize is what the files below a directory, or a file, take on disk. What goes meanwhile takes nothing.
func treeSize(ctx context.Context, dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				size += fsx.Allocated(info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return size, err
}
