package share

import (
	"errors"
	"io/fs"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// statOf returns what the host says of a file, in the numbers of Linux.
func statOf(info fs.FileInfo) (hostStat, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return hostStat{}, eIO
	}
	mode := uint32(st.Mode)
	return hostStat{
		attr: attr{
			ino: st.Ino, size: uint64(st.Size), blocks: uint64(st.Blocks), mode: mode, nlink: uint32(st.Nlink), uid: st.Uid, gid: st.Gid, io: uint32(st.Blksize),
			atime: time.Unix(st.Atimespec.Unix()), mtime: time.Unix(st.Mtimespec.Unix()), ctime: time.Unix(st.Ctimespec.Unix()),
		},
		is: identity{dev: uint64(uint32(st.Dev)), ino: st.Ino, kind: mode & typeMask, born: st.Birthtimespec.Nano()},
	}, nil
}

func statFS(fd int) (hostFS, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return hostFS{st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Bsize, st.Bsize}, err
}

// renameAt renames a name in a directory to one in another one. Where the file system cannot keep what has the new name, it
// is looked for before.
func renameAt(from int, name string, to int, newName string, noReplace bool) error {
	if noReplace {
		err := unix.RenameatxNp(from, name, to, newName, unix.RENAME_EXCL)
		if !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(to, newName, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.ENOENT) {
			if err == nil {
				err = unix.EEXIST
			}
			return err
		}
	}
	return unix.Renameat(from, name, to, newName)
}
