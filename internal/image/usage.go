package image

import (
	"context"
)

// Usage is what a kind of thing takes on disk.
type Usage struct {
	Count       int
	Active      int   // of them, those that somebody uses
	Bytes       int64 // on disk
	Reclaimable int64 // of them, those that Prune with All and LayerImages gives back
}

// DiskUsage is what the store takes on disk.
type DiskUsage struct {
	Images      Usage // all of it: the sum of the other two
	Blobs       Usage // manifests, configurations and layers as they came, and parts of them from broken-off pulls
	LayerImages Usage
}

// DiskUsage finds out what the store takes on disk. A record that cannot be read is errs.ErrCorrupt.
func (s *Store) DiskUsage(ctx context.Context) (DiskUsage, error) {
	ctx, end, err := s.beginRecords(ctx, false, false)
	if err != nil {
		return DiskUsage{}, err
	}
	defer end()
	inv, err := s.inventory(ctx)
	if err != nil {
		return DiskUsage{}, err
	}
	used := &inventory{}
	for _, k := range inv.images {
		if len(k.users) > 0 {
			used.images = append(used.images, k)
		}
	}
	blobs, layers := used.needed(s, true)
	d := DiskUsage{Blobs: usage(inv.blobs, blobs), LayerImages: usage(inv.layers, layers)}
	parts := usage(inv.partial, nil)
	d.Blobs.Count, d.Blobs.Bytes, d.Blobs.Reclaimable = d.Blobs.Count+parts.Count, d.Blobs.Bytes+parts.Bytes, d.Blobs.Reclaimable+parts.Bytes
	d.Images = Usage{
		Count: len(inv.images), Active: len(used.images), Bytes: d.Blobs.Bytes + d.LayerImages.Bytes,
		Reclaimable: d.Blobs.Reclaimable + d.LayerImages.Reclaimable,
	}
	return d, nil
}

func usage(files map[string]int64, active map[string]bool) (u Usage) {
	for name, size := range files {
		u.Count, u.Bytes = u.Count+1, u.Bytes+size
		if active[name] {
			u.Active++
		} else {
			u.Reclaimable += size
		}
	}
	return u
}
