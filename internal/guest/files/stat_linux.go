package files

import (
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// Stat tells of a file below root. A link at the end of name is not followed, but with a slash behind it.
func Stat(root int, name string) (api.StatReply, error) {
	p, err := parse(name)
	if err != nil {
		return api.StatReply{}, err
	}
	fd, err := p.open(root)
	if err != nil {
		return api.StatReply{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return api.StatReply{}, pathError("stat", name, err)
	}
	rep := api.StatReply{
		Name: path.Base(p.String()), Size: st.Size, Mode: fileMode(st.Mode),
		ModTime: time.Unix(int64(st.Mtim.Sec), int64(st.Mtim.Nsec)).UTC(),
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if rep.Link, err = target(root, p, fd); err != nil {
			return api.StatReply{}, pathError("read link", name, err)
		}
	}
	return rep, nil
}

// target resolves a link in the container. Where it leads to nothing, it is the text of the link, made absolute.
func target(root int, p place, link int) (string, error) {
	if to, err := open(root, p.String(), unix.O_PATH, inRoot); err == nil {
		defer unix.Close(to)
		return realPath(root, to)
	}
	text, err := readlink(link, "")
	if err != nil {
		return "", err
	}
	if path.IsAbs(text) {
		return path.Clean(text), nil
	}
	dir, err := open(root, p.dir, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	at, err := realPath(root, dir)
	return path.Join("/", at, text), err
}

// realPath returns the path of an open file, as seen from root.
func realPath(root, fd int) (string, error) {
	p, err := readlink(unix.AT_FDCWD, procPath(fd))
	if err != nil {
		return "", err
	}
	top, err := readlink(unix.AT_FDCWD, procPath(root))
	if err != nil {
		return "", err
	}
	return path.Join("/", strings.TrimPrefix(p, top)), nil
}

// readlink returns the text of a link; with the name "", of the link that dir is open on.
func readlink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for _, b := range []struct {
		bit uint32
		is  fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if m&b.bit != 0 {
			mode |= b.is
		}
	}
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	return mode
}
