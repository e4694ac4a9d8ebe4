package share

import (
	"fmt"
	"strconv"
	"strings"
)

// ownerAttr keeps the owner that a guest has given to a file whose owner the host does not let us change. The guest does
// not see it.
const ownerAttr = "user.arcbox.owner"

// nobody is who owns what belongs neither to the user of this process nor to anybody the guest has named.
const nobody = 65534

// keep is no change of a user or group.
const keep = ^uint32(0)

// owner is who a file belongs to in the guest.
type owner struct{ uid, gid uint32 }

// append returns the text of ownerAttr.
func (o owner) append() []byte { return fmt.Appendf(nil, "%d:%d", o.uid, o.gid) }

func parseOwner(b []byte) (owner, bool) {
	u, g, ok := strings.Cut(string(b), ":")
	uid, err := strconv.ParseUint(u, 10, 32)
	gid, gerr := strconv.ParseUint(g, 10, 32)
	return owner{uint32(uid), uint32(gid)}, ok && err == nil && gerr == nil
}
