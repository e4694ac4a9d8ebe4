//go:build !unix

package fsx

// SyncDir does nothing: this system has no way to sync a directory, and its file systems journal names themselves.
func SyncDir(string) error { return nil }
