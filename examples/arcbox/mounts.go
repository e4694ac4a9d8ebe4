package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go"
)

// volumeFlag reads the value of -v: [SOURCE:]TARGET[:OPTIONS]. A source with a slash or a dot before anything else is a path
// of the host, another one the name of a volume.
func volumeFlag(text string) (arcbox.Mount, error) {
	bad := func(why string) (arcbox.Mount, error) {
		return arcbox.Mount{}, fmt.Errorf("flag --volume %q: %s: use [SOURCE:]TARGET[:ro,nocopy]", text, why)
	}
	drive := filepath.VolumeName(text)
	parts := strings.Split(text[len(drive):], ":")
	parts[0] = drive + parts[0]
	m := arcbox.Mount{Type: arcbox.MountVolume}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
		return m, nil
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
	default:
		return bad("too many colons")
	}
	if m.Source == "" {
		return bad("the source is empty")
	}
	if filepath.IsAbs(m.Source) || m.Source[0] == '.' || m.Source[0] == '/' {
		path, err := filepath.Abs(m.Source)
		if err != nil {
			return bad(err.Error())
		}
		m.Type, m.Source = arcbox.MountBind, path
	}
	if len(parts) < 3 {
		return m, nil
	}
	for o := range strings.SplitSeq(parts[2], ",") {
		switch o {
		case "ro", "readonly":
			m.ReadOnly = true
		case "nocopy":
			m.NoCopy = true
		case "rw", "z", "Z", "cached", "delegated", "consistent": // as it is, or of no meaning here
		default:
			return bad(fmt.Sprintf("no option %q", o))
		}
	}
	return m, nil
}

// mountFlag reads the value of --mount: type=TYPE,source=SOURCE,target=TARGET and more. One of type tmpfs is not a Mount.
func mountFlag(text string, s *arcbox.ContainerSpec) error {
	m := arcbox.Mount{Type: arcbox.MountVolume}
	var t arcbox.Tmpfs
	for o := range strings.SplitSeq(text, ",") {
		key, value, set := strings.Cut(o, "=")
		var err error
		switch key {
		case "type":
			m.Type = arcbox.MountType(value)
		case "source", "src":
			m.Source = value
		case "target", "destination", "dst":
			m.Target = value
		case "readonly", "ro":
			m.ReadOnly, err = flagValue(value, set)
		case "volume-nocopy":
			m.NoCopy, err = flagValue(value, set)
		case "volume-subpath":
			m.SubPath = value
		case "tmpfs-size":
			t.Size, err = size("--mount", value)
		case "tmpfs-mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 32)
			t.Mode = uint32(mode)
		default:
			err = fmt.Errorf("no option %q", key)
		}
		if err != nil {
			return fmt.Errorf("flag --mount %q: %w: use type=volume|bind|socket|tmpfs,source=SOURCE,target=TARGET[,readonly]", text, err)
		}
	}
	switch m.Type {
	case "tmpfs":
		t.Path = m.Target
		s.Tmpfs = append(s.Tmpfs, t)
		return nil
	case arcbox.MountBind, arcbox.MountSocket:
		path, err := filepath.Abs(m.Source)
		if err != nil || m.Source == "" {
			return fmt.Errorf("flag --mount %q: the source is no path of the host", text)
		}
		m.Source = path
	}
	s.Mounts = append(s.Mounts, m)
	return nil
}

// flagValue is true for a key without a value.
func flagValue(value string, set bool) (bool, error) {
	if !set {
		return true, nil
	}
	return strconv.ParseBool(value)
}
