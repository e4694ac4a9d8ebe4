// Package image is an OCI image store in one directory. It loads images from archives and layouts, pulls them from
// registries, and keeps for every layer a read-only ext4 image that a virtual machine mounts.
//
// # On disk
//
//	blobs/sha256/<hex>      manifests, configurations and layers as they came, named by their digest
//	layers/<hex>-<n>.ext4   layer images, named by the DiffID and the converter's version
//	records/<hex>.json      one per image, named by its ID
//	refs/<hex>.json         one per name, named by the hash of the name
//	uses/<id>*.json         one per container, of an image that it needs
//	partial/<hex>           what broken-off pulls have of a blob: not verified, the next pull goes on behind it
//	ingest/<random>/        what an open Store is writing; removed with it, or by the next one if it died
//	locks/                  locks between processes
//
// A file appears under its name in one step when it is whole and durable, so a reader needs no lock and a crash leaves
// nothing half-done visible. Several processes share a directory: work on one blob or layer is done once, behind a lock on
// its digest. Operations lease the content they need, so that Prune leaves it alone: see leases.
//
// # Trust
//
// Everything that comes from outside is hostile until its digest has been checked. No archive is ever unpacked onto the
// host: an ext4 image is built from the stream, with symbolic links followed inside the layer only.
package image

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a snapshot of an image in the store.
type Image struct {
	ID       digest.Digest       // of the configuration; the same whatever the compression of the layers
	Names    []string            // normalised references, sorted; empty for an image that lost its names
	Manifest digest.Digest       // of the manifest the image came with, or of one made for a docker archive
	Platform ocispec.Platform    // what the image runs on
	Config   ocispec.ImageConfig // entrypoint, command, environment and so on
	// Healthcheck is Docker's extension of the configuration, as raw JSON; nil where the image has none.
	Healthcheck []byte
	Layers      []LayerInfo // lowest first
	Created     time.Time   // by the image's own word; zero where it has none
	Loaded      time.Time   // when this store got it
	Size        int64       // of the layers as they came, in bytes
}

// LayerInfo is one layer of an image.
type LayerInfo struct {
	DiffID    digest.Digest // of the uncompressed archive
	Digest    digest.Digest // of the blob
	Size      int64         // of the blob in bytes
	MediaType string        // of the blob
}

// LayerDisk is a layer as a file that holds a read-only ext4 file system.
type LayerDisk struct {
	DiffID digest.Digest
	// Serial is 20 characters of [a-z2-7], made from the DiffID and the converter's version: the disk serial by which a
	// guest finds the layer.
	Serial string
	Path   string // absolute
	Size   int64  // in bytes, a multiple of 4096
}

// Limits bound what an image may ask of the store. The zero value of each field is the default.
type Limits struct {
	LayerSize    int64 // bytes of one layer uncompressed; 0 is 16 GiB, at most 8 TiB
	LayerEntries int   // names in one layer; 0 is 1,000,000
	Layers       int   // layers of one image; 0 is 127
	ManifestSize int64 // bytes of a manifest or index; 0 is 4 MiB
	ConfigSize   int64 // bytes of a configuration; 0 is 8 MiB
	BlobSize     int64 // bytes of one blob as it comes; 0 is 16 GiB
	Parallel     int   // layers worked on at once by one call; 0 is 3

	gate gate // of the Store; nil is open
}

func (l Limits) withDefaults() Limits {
	orElse(&l.LayerSize, 16<<30)
	l.LayerSize = min(l.LayerSize, 8<<40)
	orElse(&l.LayerEntries, 1_000_000)
	orElse(&l.Layers, 127)
	orElse(&l.ManifestSize, 4<<20)
	orElse(&l.ConfigSize, 8<<20)
	orElse(&l.BlobSize, 16<<30)
	orElse(&l.Parallel, 3)
	return l
}

func orElse[T int | int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}
