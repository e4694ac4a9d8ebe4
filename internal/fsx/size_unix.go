//go:build unix

package fsx

import (
	"io/fs"
	"syscall"
)

// Allocated returns how many bytes a file takes on disk, which for a sparse one are fewer than its size.
func Allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}
