//go:build !linux

package qemu

import (
	"errors"
	"runtime"
)

// thisHost looks at the host.
func thisHost() host {
	return host{os: runtime.GOOS, arch: runtime.GOARCH, kvm: errors.ErrUnsupported}
}
