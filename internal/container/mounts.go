package container

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/share"
	"github.com/arcboxlabs/arcbox-go/internal/volume"
)

// MountType says what a Mount is of.
type MountType string

// The types of mounts.
const (
	MountVolume MountType = "volume"
	MountBind   MountType = "bind" // a directory or a file of the host
	MountFS     MountType = "fs"   // an fs.FS
	MountSocket MountType = "socket"
)

// Mount is what a caller wants to have mounted into a container.
type Mount struct {
	Type     MountType `json:"type"`
	Source   string    `json:"source,omitempty"` // name of a volume, "" is an anonymous one; or a path of the host
	Target   string    `json:"target"`
	SubPath  string    `json:"sub_path,omitempty"`
	ReadOnly bool      `json:"read_only,omitempty"`
	NoCopy   bool      `json:"no_copy,omitempty"` // of a volume
	FS       fs.FS     `json:"-"`                 // not nil where it is of one, until the program ends
	Dial     DialFunc  `json:"-"`                 // of a socket without a source
}

// DialFunc makes the host's side of a connection to a socket that is mounted.
type DialFunc = func(context.Context) (net.Conn, error)

// MountPoint is a mount of a container as it came to be.
type MountPoint struct {
	Type      MountType `json:"type"`
	Name      string    `json:"name,omitempty"`      // of the volume
	VolumeID  string    `json:"volume_id,omitempty"` // of its data
	Anonymous bool      `json:"anonymous,omitempty"` // the volume was made for this container
	Path      string    `json:"path,omitempty"`      // of the host
	Target    string    `json:"target"`
	SubPath   string    `json:"sub_path,omitempty"`
	ReadOnly  bool      `json:"read_only,omitempty"`
	NoCopy    bool      `json:"no_copy,omitempty"`
	FS        fs.FS     `json:"-"` // nil where the program that made the container has ended
	Dial      DialFunc  `json:"-"` // the same, of a socket without a path
}

// maxPath is what Linux takes for a path in bytes, the zero byte at its end included.
const maxPath = 4096

// checkMounts checks the mounts and those of Tmpfs together: no two may have one target.
func checkMounts(s Spec) error {
	targets := make(map[string]bool)
	take := func(target string) error {
		clean := path.Clean(target)
		if targets[clean] {
			return fmt.Errorf("%w: two mounts have the target %q: leave one out", errs.ErrConflict, clip(target))
		}
		targets[clean] = true
		return nil
	}
	for _, t := range s.Tmpfs {
		if err := take(t.Path); err != nil {
			return err
		}
	}
	for _, m := range s.Mounts {
		if err := m.validate(); err != nil {
			return err
		}
		if err := take(m.Target); err != nil {
			return err
		}
	}
	return nil
}

func (m Mount) validate() error {
	if err := checkTarget(m.Target); err != nil {
		return err
	}
	if err := checkSubPath(m.SubPath); err != nil {
		return err
	}
	if m.Type != MountVolume && m.SubPath != "" {
		return invalid("sub-path of a mount", m.SubPath, "only a volume has one; name what is below the source as the source")
	}
	switch m.Type {
	case MountSocket:
		if m.Source == "" {
			return nil
		}
		fallthrough
	case MountBind:
		if !filepath.IsAbs(m.Source) || len(m.Source) >= maxPath || strings.ContainsRune(m.Source, 0) {
			return invalid("source of a mount", clip(m.Source), "use an absolute path of the host")
		}
		return nil
	case MountFS:
		if m.Source != "" {
			return invalid("source of a mount", clip(m.Source), "a file system that is a value has none")
		}
		return nil
	case MountVolume:
		if m.Source != "" {
			return volume.CheckName(m.Source)
		}
		if m.SubPath != "" {
			return invalid("sub-path of a mount", m.SubPath, "a volume that nobody has named is empty; name one")
		}
		return nil
	}
	return invalid("type of a mount", string(m.Type), "use volume, bind, socket or fs")
}

// checkSources checks what a record cannot tell: that what is to be shared is there.
func checkSources(mounts []Mount) error {
	for _, m := range mounts {
		switch m.Type {
		case MountFS:
			if m.FS == nil {
				return invalid("file system of the mount on", m.Target, "set FS")
			}
		case MountSocket:
			if (m.Source == "") == (m.Dial == nil) {
				return invalid("source of the socket on", m.Target, "set either Source or Dial")
			}
		}
		if m.Type == MountBind || m.Type == MountSocket && m.Source != "" {
			st, err := os.Stat(m.Source)
			if err != nil {
				return fmt.Errorf("%w source of a mount %q: %w: make it first", errs.ErrInvalid, clip(m.Source), err)
			}
			socket := st.Mode().Type() == fs.ModeSocket
			if m.Type == MountBind && !st.IsDir() && !st.Mode().IsRegular() && !socket {
				return invalid("source of a mount", m.Source, "it is neither a directory nor a regular file nor a socket")
			}
			if m.Type == MountSocket && !socket {
				return invalid("source of a mount", m.Source, "it is no socket; use bind")
			}
		}
		if m.Type != MountSocket && m.Dial != nil {
			return invalid("type of a mount", string(m.Type), "it has a dial function; use socket")
		}
		if m.Type != MountFS && m.FS != nil {
			return invalid("type of a mount", string(m.Type), "it has a file system; use fs")
		}
	}
	return nil
}

// checkTarget checks where something is mounted.
func checkTarget(target string) error {
	if !strings.HasPrefix(target, "/") || len(target) >= maxPath || strings.ContainsRune(target, 0) {
		return invalid("target of a mount", clip(target), "use an absolute path")
	}
	switch clean := path.Clean(target); {
	case clean == "/", clean == "/dev", clean == "/proc", clean == "/sys", strings.HasPrefix(clean, "/proc/"), strings.HasPrefix(clean, "/sys/"):
		return invalid("target of a mount", clip(target), "the container's own file systems are there; use another path")
	}
	return nil
}

func checkSubPath(p string) error {
	clean := path.Clean(p)
	if p != "" && (path.IsAbs(p) || clean == ".." || strings.HasPrefix(clean, "../")) || len(p) >= maxPath || strings.ContainsRune(p, 0) {
		return invalid("sub-path of a mount", clip(p), "use a relative path that does not lead out of the source")
	}
	return nil
}

// checkPoints checks the mounts of a record.
func checkPoints(points []MountPoint) error {
	for _, p := range points {
		if err := (Mount{Type: p.Type, Source: p.Name + p.Path, Target: p.Target, SubPath: p.SubPath}).validate(); err != nil {
			return err
		}
		if p.Type == MountVolume && !idPattern.MatchString(p.VolumeID) {
			return invalid("volume id", clip(p.VolumeID), "use 64 hexadecimal digits")
		}
	}
	return nil
}

// takeVolumes notes which volumes a container uses, makes those that do not exist, and returns all mounts of the container.
// An image's volumes are anonymous ones, where the spec mounts nothing there.
func (m *Manager) takeVolumes(id, name string, s Spec, declared map[string]struct{}) ([]MountPoint, error) {
	mounts := slices.Clone(s.Mounts)
	taken := make(map[string]bool)
	for _, t := range s.Tmpfs {
		taken[path.Clean(t.Path)] = true
	}
	for _, mnt := range mounts {
		taken[path.Clean(mnt.Target)] = true
	}
	for _, target := range slices.Sorted(maps.Keys(declared)) {
		target = path.Clean("/" + target)
		if taken[target] || len(mounts) == maxList {
			continue
		}
		if err := checkTarget(target); err != nil {
			return nil, fmt.Errorf("volume of the image: %w", err)
		}
		taken[target] = true
		mounts = append(mounts, Mount{Type: MountVolume, Target: target})
	}
	var want []volume.Want
	for _, mnt := range mounts {
		if mnt.Type == MountVolume {
			want = append(want, volume.Want{Name: mnt.Source})
		}
	}
	volumes, err := m.cfg.Volumes.Use(id, name, want)
	if err != nil {
		return nil, err
	}
	points := make([]MountPoint, len(mounts))
	for i, mnt := range mounts {
		points[i] = MountPoint{Type: mnt.Type, Target: path.Clean(mnt.Target), SubPath: mnt.SubPath, ReadOnly: mnt.ReadOnly, NoCopy: mnt.NoCopy}
		switch mnt.Type {
		case MountVolume:
			v := volumes[0]
			volumes = volumes[1:]
			points[i].Name, points[i].VolumeID, points[i].Anonymous = v.Name, v.ID, v.Anonymous
		case MountBind:
			points[i].Path = filepath.Clean(mnt.Source)
			if isSocket(points[i].Path) { // as it is bound by other container engines
				points[i].Type = MountSocket
			}
		case MountSocket:
			if points[i].Dial = mnt.Dial; mnt.Source != "" {
				points[i].Path = filepath.Clean(mnt.Source)
			}
		case MountFS:
			points[i].FS, points[i].ReadOnly = mnt.FS, mnt.ReadOnly || share.ReadOnly(mnt.FS)
		}
	}
	return points, nil
}

func isSocket(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == fs.ModeSocket
}

// restoreVolumes notes which volumes a container of an earlier program uses.
func (m *Manager) restoreVolumes(i Info) {
	var names []string
	for _, p := range i.Mounts {
		if p.Type == MountVolume {
			names = append(names, p.Name)
		}
	}
	if len(names) > 0 {
		m.cfg.Volumes.Restore(i.ID, i.Name, names)
	}
}

// openMounts makes the guest's mounts. What is shared is there until unshare is called.
func openMounts(ctx context.Context, mach Machine, points []MountPoint) (mounts []api.Mount, unshare func(), err error) {
	var undo []func()
	release := sync.OnceFunc(func() {
		for _, f := range undo {
			f()
		}
	})
	defer func() {
		if err != nil {
			release()
		}
	}()
	for _, p := range points {
		m := api.Mount{Kind: api.MountVolume, Source: p.VolumeID, SubPath: p.SubPath, Target: p.Target, ReadOnly: p.ReadOnly, NoCopy: p.NoCopy}
		if p.Type != MountVolume {
			id, done, err := p.open(ctx, mach)
			if err != nil {
				return nil, nil, fmt.Errorf("mount on %s: %w", p.Target, err)
			}
			undo = append(undo, done)
			m.Kind, m.Source = api.MountShare, id
		}
		mounts = append(mounts, m)
	}
	return mounts, release, nil
}

// open makes what is mounted available in the guest.
func (p MountPoint) open(ctx context.Context, mach Machine) (id string, release func(), err error) {
	const gone = "%w: it was a value of a program that has ended: remove the container and create it again"
	switch {
	case p.Type == MountSocket && p.Path != "":
		return mach.Offer(ctx, func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.Path)
		})
	case p.Type == MountSocket && p.Dial == nil, p.Type == MountFS && p.FS == nil:
		return "", nil, fmt.Errorf(gone, errs.ErrUnavailable)
	case p.Type == MountSocket:
		return mach.Offer(ctx, p.Dial)
	}
	return mach.Share(ctx, share.Source{Path: p.Path, ReadOnly: p.ReadOnly, FS: p.FS})
}
