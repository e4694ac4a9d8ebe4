package share

import (
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// owners says who owns a file, to the guest and to the host.
//
// A process of root changes owners, and they are the same on both sides. Another one cannot: what belongs to its user is
// root's in the guest, what belongs to others is nobody's, and an owner that the guest chooses is kept in an attribute of
// the file.
type owners struct {
	real     bool
	uid, gid uint32 // of this process
}

func newOwners() owners {
	return owners{real: os.Geteuid() == 0, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
}

// guest returns who owns a file in the guest. fd names the file.
func (o owners) guest(fd int, st *unix.Statx_t) fuse.Owner {
	if o.real {
		return fuse.Owner{Uid: st.Uid, Gid: st.Gid}
	}
	owner := fuse.Owner{Uid: nobody, Gid: nobody}
	if st.Uid == o.uid {
		owner.Uid = 0
		if chosen, ok := readOwner(fd, st.Mode); ok {
			return chosen
		}
	}
	if st.Gid == o.gid {
		owner.Gid = 0
	}
	return owner
}

// readOwner reads the owner that the guest has chosen.
func readOwner(fd int, mode uint16) (fuse.Owner, bool) {
	if !keepsOwner(mode) {
		return fuse.Owner{}, false
	}
	var b [32]byte
	n, err := unix.Getxattr(procPath(fd), ownerAttr, b[:])
	if err != nil {
		return fuse.Owner{}, false
	}
	o, ok := parseOwner(b[:n])
	return fuse.Owner{Uid: o.uid, Gid: o.gid}, ok
}

// keepsOwner tells whether a file can have an attribute: links, pipes and sockets cannot.
func keepsOwner(mode uint16) bool {
	kind := uint32(mode) & unix.S_IFMT
	return kind == unix.S_IFREG || kind == unix.S_IFDIR
}

// set changes the owner of a file; keep leaves one of the two. A file that cannot have an owner of the guest's choice
// keeps the one it has, which is no error.
func (o owners) set(fd int, st *unix.Statx_t, uid, gid uint32) error {
	if o.real {
		return unix.Fchownat(fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH)
	}
	now := o.guest(fd, st)
	if uid != keep {
		now.Uid = uid
	}
	if gid != keep {
		now.Gid = gid
	}
	if !keepsOwner(st.Mode) || now == o.guest(fd, st) {
		return nil
	}
	return unix.Setxattr(procPath(fd), ownerAttr, owner{now.Uid, now.Gid}.append(), 0)
}

// adopt gives a new file to who has made it. In a directory that says so the group is that of the directory.
func (o owners) adopt(fd int, st *unix.Statx_t, caller fuse.Owner, dir fuse.Owner, dirMode uint16) error {
	if dirMode&unix.S_ISGID != 0 {
		caller.Gid = dir.Gid
	}
	if o.guest(fd, st) == caller {
		return nil
	}
	return o.set(fd, st, caller.Uid, caller.Gid)
}

// procPath is a path that means the file of a descriptor, whatever it is.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
