package needs

import (
	"syscall"
	"testing"
)

// SmallDir returns a directory on a file system of its own with room for size, as "64m", until the test ends. Mounting
// one takes root.
func SmallDir(t testing.TB, size string) string {
	t.Helper()
	Root(t, "mounting a small file system")
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal("mount a small file system:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error("unmount a small file system:", err)
		}
	})
	return dir
}

// Grow gives a directory of SmallDir more room.
func Grow(t testing.TB, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal("grow a small file system:", err)
	}
}
