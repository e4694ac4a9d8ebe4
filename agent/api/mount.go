package api

// The methods of volumes.
var (
	VolumeStat   = Method[VolumeStatRequest, VolumeStatReply]{"volume-stat"}
	VolumeRemove = Method[VolumeRemoveRequest, VolumeRemoveReply]{"volume-remove"}
	VolumeExport = StreamMethod[VolumeExportRequest]{"volume-export"}
	VolumeImport = StreamMethod[VolumeImportRequest]{"volume-import"}
)

// MountKind says what a Mount is of.
type MountKind string

// The kinds of mounts. File systems in memory are of their own type, Tmpfs.
const (
	MountVolume MountKind = "volume" // a directory on the machine's data disk, or in its memory where it has no disk
	MountShare  MountKind = "share"  // a file system of Share, or a socket of Listen, which is there
)

// HostShare begins the Source of a share that needs no Share: the rest is the path of a directory or file, relative, below
// the one directory that the host shares whole with the machine, on hypervisors that can do so from the start only.
const HostShare = "host:"

// Mount is a directory or a file that is mounted into a container. What is mounted on a path with fewer elements comes
// first, those of Tmpfs included, so that what is mounted below lies on top.
type Mount struct {
	Kind     MountKind `json:"kind"`
	Source   string    `json:"source"`             // id of the volume, in the form of a container's, made where it does not exist; or of the share
	SubPath  string    `json:"sub_path,omitempty"` // what of the volume is mounted; relative, "" is the whole. It must exist; links in it stay within the volume
	Target   string    `json:"target"`             // absolute, in the container; made where it does not exist
	ReadOnly bool      `json:"read_only,omitempty"`

	// NoCopy leaves an empty volume empty. Otherwise it gets what the image has at Target, owner and mode of that included,
	// where SubPath is "".
	NoCopy bool `json:"no_copy,omitempty"`
}

// VolumeStatRequest asks for the size of a volume.
type VolumeStatRequest struct {
	ID string `json:"id"`
}

// VolumeStatReply is the size. A volume of which there is no data yet has none.
type VolumeStatReply struct {
	Bytes int64 `json:"bytes"` // on the disk
	Files int64 `json:"files"` // directories and links included, a file with many names once for each
}

// VolumeRemoveRequest removes the data of a volume. What is not there is no error. Containers that have it mounted keep it
// until they end.
type VolumeRemoveRequest struct {
	ID string `json:"id"`
}

// VolumeRemoveReply is empty.
type VolumeRemoveReply struct{}

// VolumeExportRequest reads a volume as a tar archive. Frames: FrameStdout with the archive, then FrameExit.
type VolumeExportRequest struct {
	ID string `json:"id"`
}

// VolumeImportRequest unpacks a tar archive into a volume, which is made where it does not exist. Frames as of
// CopyToRequest. Owners are those of the archive.
type VolumeImportRequest struct {
	ID string `json:"id"`
}
