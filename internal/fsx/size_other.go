//go:build !unix

package fsx

import "io/fs"

// Allocated returns how many bytes a file takes on disk: its size, since this system does not tell what of it are holes.
func Allocated(info fs.FileInfo) int64 { return info.Size() }
