//go:build unix

package disk

import (
	"io/fs"
	"syscall"
)

// allocated returns how many bytes of the file system a file takes.
func allocated(st fs.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks * 512 }
