package qemu

import (
	"bufio"
	"io"
	"os"
	"runtime"
	"strings"
)

// thisHost looks at the host.
func thisHost() host {
	h := host{os: runtime.GOOS, arch: runtime.GOARCH}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		h.kvm = err
	} else {
		f.Close()
	}
	if h.arch == "amd64" && h.kvm == nil {
		if f, err := os.Open("/proc/cpuinfo"); err == nil {
			h.virtCPU = hasVirtFlag(f)
			f.Close()
		}
	}
	return h
}

// hasVirtFlag tells whether the first processor that a cpuinfo file describes can virtualise.
func hasVirtFlag(cpuinfo io.Reader) bool {
	sc := bufio.NewScanner(io.LimitReader(cpuinfo, 1<<20))
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(value) {
			if flag == "vmx" || flag == "svm" {
				return true
			}
		}
		return false
	}
	return false
}
