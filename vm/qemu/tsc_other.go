//go:build !amd64

package qemu

func rdtsc() uint64 { return 0 }

// hasTSC is false where QEMU counts nanoseconds in place of a time stamp counter.
const hasTSC = false
