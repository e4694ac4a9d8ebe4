//go:build !unix

package vz

// isCrossDevice tells nothing: there is no Virtualization framework here.
func isCrossDevice(error) bool { return false }
