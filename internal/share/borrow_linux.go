package share

import "golang.org/x/sys/unix"

// borrow returns a descriptor of its own of a file that is open.
func (t *nodes) borrow(n *node) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(n.open) == 0 {
		return -1, unix.ENOENT
	}
	return unix.FcntlInt(uintptr(n.open[0]), unix.F_DUPFD_CLOEXEC, 3)
}
