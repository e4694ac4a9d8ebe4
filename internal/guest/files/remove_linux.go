package files

import "golang.org/x/sys/unix"

// maxRemoveDepth bounds how deep a directory may be that is replaced: each level holds a descriptor.
const maxRemoveDepth = 128

// remove deletes a name in a directory, and what is in it. It leaves mounts alone: EBUSY.
func remove(at int, name string) error {
	r := remover{left: maxNames}
	return r.remove(at, name, maxRemoveDepth)
}

// remover has the bytes of names that may still be held.
type remover struct{ left int }

func (r *remover) remove(at int, name string, depth int) error {
	if isMount(at, name) {
		return unix.EBUSY // the kernel would take the mount away, which is not the agent's own
	}
	err := unix.Unlinkat(at, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	for range maxTries {
		err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
		switch {
		case err == nil || err == unix.ENOENT:
			return nil
		case err != unix.ENOTEMPTY && err != unix.EEXIST:
			return err
		case depth == 0:
			return unix.ENAMETOOLONG
		}
		if err := r.inside(at, name, depth-1); err != nil {
			return err
		}
	}
	return unix.EAGAIN
}

// inside deletes what is in a directory.
func (r *remover) inside(at int, name string, depth int) error {
	fd, err := open(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, below|unix.RESOLVE_NO_XDEV)
	if err == unix.EXDEV {
		return unix.EBUSY
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd, ".", r.left)
	if err != nil {
		return &targetError{err}
	}
	size := 0
	for _, n := range names {
		size += len(n) + nameCost
	}
	r.left -= size
	defer func() { r.left += size }()
	for _, n := range names {
		if err := r.remove(fd, n, depth); err != nil {
			return err
		}
	}
	return nil
}

// isMount tells whether something is mounted on a name.
func isMount(at int, name string) bool {
	var st unix.Statx_t
	err := unix.Statx(at, name, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
