package arcbox

import (
	"context"
	"io/fs"
	"net"

	"github.com/arcboxlabs/arcbox-go/internal/container"
)

// MountType says what a Mount is of.
type MountType string

// The types of mounts.
const (
	MountVolume = MountType(container.MountVolume) // a volume of this Runtime, on the machine's disk
	MountBind   = MountType(container.MountBind)   // a directory or a file of the host
	MountFS     = MountType(container.MountFS)     // an fs.FS of this program, read only
	MountSocket = MountType(container.MountSocket) // a Unix socket in the container that leads to one of the host, or to a function of this program
)

// Mount is a directory or a file that is mounted into a container. Two mounts on one target are ErrConflict; one may lie
// below another.
//
// A directory of the host is confined: whatever links say that it has or that the container makes, what is outside is not
// reached. Changes show on the other side within a second. In a program of root owners are the same on both sides. In
// another one files of the program's user are root's in the container, those of others nobody's; an owner that the
// container gives to a file is kept in the file's attribute user.arcbox.owner. Set-user-ID bits and devices are not made.
// Locks hold among containers and against processes of the host. Where the directory vanishes, or the
// program ends, whoever uses it gets errors.
//
// On macOS the framework itself serves what lies in VMConfig.SharedDir. Elsewhere on a Mac this program does, with less than
// on Linux: locks hold among containers only, pipes, sockets and extended attributes are not made, the times of a
// symbolic link are not set, names are not exchanged, and there is no fallocate(2) and no search for holes. On other systems
// a directory or a file of the host is ErrUnsupported.
//
// Who connects to a socket in the container has a connection to the one of the host, or what Dial returns, with half-close;
// any user of the container may. Where the host's side cannot be had, the connection is closed at once. Connections end
// with the container, and when their machine does. In a fork of the machine who connects is refused until the container is
// started again.
type Mount struct {
	Type     MountType
	Source   string // of MountVolume the name, made where it does not exist, "" for an anonymous one; of MountBind and MountSocket an absolute path that exists; a socket is MountSocket either way
	Target   string // absolute, in the container; made where it does not exist
	SubPath  string // of a volume, what to mount of it, relative; it must exist, and links in it stay within the volume. "" is the whole
	ReadOnly bool   // the container cannot write it
	NoCopy   bool   // leave an empty volume empty: it does not get what the image has at Target
	FS       fs.FS  // of MountFS: what the container finds. Its methods are called from many goroutines. The container cannot be started again in another program

	// Dial is of MountSocket without a Source: it makes the other side of each connection, for example to the address of a
	// listener of the program, or one end of a pipe. It is called from many goroutines. ctx bounds the connecting only, which
	// may take 30 seconds, and ends with the container. That cannot be started again in another program.
	Dial func(ctx context.Context) (net.Conn, error) `json:"-"`
}

func (m Mount) compile() container.Mount {
	return container.Mount{
		Type: container.MountType(m.Type), Source: m.Source, Target: m.Target, SubPath: m.SubPath, ReadOnly: m.ReadOnly,
		NoCopy: m.NoCopy, FS: m.FS, Dial: m.Dial,
	}
}

func mountOf(m container.Mount) Mount {
	return Mount{
		Type: MountType(m.Type), Source: m.Source, Target: m.Target, SubPath: m.SubPath, ReadOnly: m.ReadOnly, NoCopy: m.NoCopy, FS: m.FS, Dial: m.Dial,
	}
}

// MountPoint is a mount of a container as it came to be: with the names of anonymous volumes, and with the volumes that
// the image declares.
type MountPoint struct {
	Type      MountType
	Source    string // name of the volume, or path of the host
	Anonymous bool   // nobody has named the volume
	Target    string // in the container
	SubPath   string // of the volume; "" is the whole
	ReadOnly  bool
}

func mountPoint(p container.MountPoint) MountPoint {
	return MountPoint{
		Type: MountType(p.Type), Source: p.Name + p.Path, Anonymous: p.Anonymous, Target: p.Target, SubPath: p.SubPath, ReadOnly: p.ReadOnly,
	}
}
