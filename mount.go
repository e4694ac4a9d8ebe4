package arcbox

import "github.com/arcboxlabs/arcbox-go/internal/container"

// MountType says what a Mount is of.
type MountType string

// The types of mounts.
const (
	MountVolume = MountType(container.MountVolume) // a volume of this Runtime, on the machine's disk
)

// Mount is a directory or a file that is mounted into a container.
//
//	arcbox.Mount{Type: arcbox.MountVolume, Source: "data", Target: "/var/lib/data"}
//
// Two mounts on one target are ErrConflict; one may lie below another.
type Mount struct {
	Type     MountType
	Source   string // name of the volume, which is made where it does not exist; "" is an anonymous one of the container's own
	Target   string // absolute, in the container; made where it does not exist
	SubPath  string // what of the source to mount, relative; it must exist, and links in it stay within the source. "" is the whole
	ReadOnly bool   // the container cannot write it
	NoCopy   bool   // leave an empty volume empty: it does not get what the image has at Target
}

func (m Mount) compile() container.Mount {
	return container.Mount{
		Type: container.MountType(m.Type), Source: m.Source, Target: m.Target, SubPath: m.SubPath, ReadOnly: m.ReadOnly, NoCopy: m.NoCopy,
	}
}

func mountOf(m container.Mount) Mount {
	return Mount{
		Type: MountType(m.Type), Source: m.Source, Target: m.Target, SubPath: m.SubPath, ReadOnly: m.ReadOnly, NoCopy: m.NoCopy,
	}
}

// MountPoint is a mount of a container as it came to be: with the names of anonymous volumes, and with the volumes that
// the image declares.
type MountPoint struct {
	Type      MountType
	Source    string // name of the volume
	Anonymous bool   // nobody has named the volume
	Target    string // in the container
	SubPath   string // of the source; "" is the whole
	ReadOnly  bool
}

func mountPoint(p container.MountPoint) MountPoint {
	return MountPoint{
		Type: MountType(p.Type), Source: p.Name, Anonymous: p.Anonymous, Target: p.Target, SubPath: p.SubPath, ReadOnly: p.ReadOnly,
	}
}
