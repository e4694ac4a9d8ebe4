package box

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// lowerDirs mounts the layers, lowest first, and returns their directories in the order that overlayfs takes: the
// highest first. A layer that is there twice counts where it is highest: it hides all of itself below.
func (b *Box) lowerDirs(ctx context.Context, list []api.Layer) ([]string, error) {
	seen := make(map[string]bool)
	var dirs []string
	for i := len(list) - 1; i >= 0; i-- {
		serial := list[i].Serial
		if seen[serial] {
			continue
		}
		seen[serial] = true
		dir, err := b.layers.get(ctx, serial)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// maxFsconfig is the longest value that fsconfig takes.
const maxFsconfig = 255

// plainUpper makes an overlay whose upper directory has every file whole and in its own place, whatever the kernel's
// defaults are: what a container changed can be read from there.
var plainUpper = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}}

// mountRoot mounts a container's root and returns it as a mount that is attached nowhere: it goes when its last user,
// this descriptor included, has gone.
func mountRoot(lower []string, s scratch) (int, error) {
	dirs := strings.Join(lower, ":")
	if len(dirs) > maxFsconfig {
		return mountRootOld(mountOptions(lower, s), s)
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	opts := [][2]string{{"source", "overlay"}, {"lowerdir", dirs}, {"upperdir", s.upper()}, {"workdir", s.work()}}
	for _, kv := range append(opts, plainUpper...) {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("set %s of overlay: %w", kv[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make overlay of %d layers: %w", len(lower), err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	return fd, nil
}

// mountOptions returns the options of a container's overlay in one text.
func mountOptions(lower []string, s scratch) string {
	opts := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + s.upper() + ",workdir=" + s.work()
	for _, kv := range plainUpper {
		opts += "," + kv[0] + "=" + kv[1]
	}
	return opts
}

// mountRootOld does the same with mount, which takes a page of options.
func mountRootOld(opts string, s scratch) (int, error) { return attachOverlay(opts, s.dir+"/m") }

// attachOverlay mounts an overlay on a directory that it makes, and returns it attached nowhere.
func attachOverlay(opts, at string) (int, error) {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	if len(opts) >= os.Getpagesize() {
		return -1, fmt.Errorf("mount overlay: %d bytes of options are more than a page", len(opts))
	}
	if err := unix.Mount("overlay", at, "overlay", 0, opts); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("detach overlay: %w", err)
	}
	return fd, nil
}

// maxRead bounds the files of a container that the agent reads.
const maxRead = 1 << 20

// readIn reads a file of a container: a regular one, whose path is resolved below the container's root. Of one that is
// longer than maxRead it returns the beginning. A file that is not there is empty.
func readIn(root int, path string) ([]byte, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	at, err := unix.Openat2(root, path, &how)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil, nil
	default:
		return nil, fmt.Errorf("open %s of the container: %w", path, err)
	}
	defer unix.Close(at)
	// A pipe or a device must not be opened: that may wait, or do something.
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		return nil, fmt.Errorf("open %s of the container: %w", path, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRead))
}
