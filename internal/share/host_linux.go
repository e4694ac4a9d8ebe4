package share

import (
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
	return hostStat{
		attr: attr{
			ino: st.Ino, size: uint64(st.Size), blocks: uint64(st.Blocks), mode: st.Mode, nlink: uint32(st.Nlink), uid: st.Uid, gid: st.Gid, io: uint32(st.Blksize),
			atime: time.Unix(st.Atim.Unix()), mtime: time.Unix(st.Mtim.Unix()), ctime: time.Unix(st.Ctim.Unix()),
		},
		is: identity{dev: st.Dev, ino: st.Ino, kind: st.Mode & typeMask},
	}, nil
}

func statFS(fd int) (hostFS, error) {
	var st unix.Statfs_t
	err := retry(func() error { return unix.Fstatfs(fd, &st) })
	return hostFS{st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, uint32(st.Bsize), uint32(st.Frsize)}, err
}

// renameAt renames a name in a directory to one in another one.
func renameAt(from int, name string, to int, newName string, noReplace bool) error {
	flags := uint(0)
	if noReplace {
		flags = unix.RENAME_NOREPLACE
	}
	return unix.Renameat2(from, name, to, newName, flags)
}
