//go:build linux || darwin

package share

import "golang.org/x/sys/unix"

// handleLimit returns how many files a guest may have open by one share: each takes a descriptor of this program, which needs
// some itself. macOS gives a program some ten thousand.
func handleLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxHandles / 16
	}
	return int(min(uint64(limit.Cur)/2, maxHandles))
}
