package box

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxUserID is the largest user or group number: the next one means "no change" to the kernel.
const maxUserID = 1<<32 - 2

// maxGroups is how many supplementary groups the kernel takes.
const maxGroups = 65536

// user is whom a process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// lookupUser finds spec, user[:group] by names or numbers, in the texts of a container's passwd and group files. A name
// that is not there is ErrInvalid; a number need not be there. As other container engines do it: an empty user is 0; the
// group of a user that is not listed is 0; supplementary groups are those of the group file that name the user, and none
// where spec names a group.
func lookupUser(spec string, passwd, group []byte) (user, error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	u := user{home: "/"}
	number, isNumber := parseID(name)
	login := ""
	for f := range fields(passwd, 6) {
		uid, ok := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok || !ok2 || f[0] != name && !(isNumber && uid == number) {
			continue
		}
		u.uid, u.gid, login = uid, gid, f[0]
		if f[5] != "" {
			u.home = f[5]
		}
		break
	}
	if login == "" {
		if !isNumber {
			return u, fmt.Errorf("user %q: %w: no such user in the container's /etc/passwd", name, errs.ErrInvalid)
		}
		u.uid = number
		if number == 0 {
			u.home = "/root"
		}
	}
	if !hasGroup || groupName == "" {
		u.groups = memberships(group, login)
		return u, nil
	}
	gid, err := lookupGroup(groupName, group)
	u.gid = gid
	return u, err
}

// join adds the groups of a list, names or numbers, and the user's own, as initgroups(3) does: where that were no
// supplementary group, a set-group-id program would leave it, and with it what the group is denied.
func (u *user) join(list []string, group []byte) error {
	if !slices.Contains(u.groups, u.gid) {
		u.groups = append([]uint32{u.gid}, u.groups...)
	}
	for _, name := range list {
		gid, err := lookupGroup(name, group)
		if err != nil {
			return err
		}
		if !slices.Contains(u.groups, gid) {
			u.groups = append(u.groups, gid)
		}
	}
	return nil
}

func lookupGroup(name string, group []byte) (uint32, error) {
	for f := range fields(group, 3) {
		if gid, ok := parseID(f[2]); ok && f[0] == name {
			return gid, nil
		}
	}
	if gid, ok := parseID(name); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("group %q: %w: no such group in the container's /etc/group", name, errs.ErrInvalid)
}

// memberships returns the groups that name login as a member.
func memberships(group []byte, login string) []uint32 {
	var out []uint32
	if login == "" {
		return nil
	}
	for f := range fields(group, 4) {
		gid, ok := parseID(f[2])
		if !ok || len(out) == maxGroups-1 { // one is the user's own
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == login {
				out = append(out, gid)
				break
			}
		}
	}
	return out
}

// parseID reads a user or group number.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxUserID
}

// fields yields the lines of a passwd-like text that have at least n fields and a name.
func fields(text []byte, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range bytes.SplitSeq(text, []byte{'\n'}) {
			f := strings.Split(strings.TrimSpace(string(line)), ":")
			if len(f) < n || f[0] == "" || f[0][0] == '#' {
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}
