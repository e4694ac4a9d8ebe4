//go:build unix

package arcbox

import "golang.org/x/sys/unix"

// freeSpace returns the bytes that this user may still write to the file system of a path.
func freeSpace(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
