package qemu

import (
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// host is what the choice of an accelerator depends on.
type host struct {
	os, arch string // as GOOS and GOARCH
	kvm      error  // nil where /dev/kvm can be opened for reading and writing
	virtCPU  bool   // amd64: /proc/cpuinfo has the flag vmx or svm
}

// choose returns the accelerator for a guest of the architecture, and why it is not a faster one, "" where it is the
// fastest. An accelerator that was asked for and cannot work is ErrUnsupported.
func (h host) choose(guestArch string, want vm.Accelerator) (vm.Accelerator, string, error) {
	var native vm.Accelerator
	var reason string
	switch h.os {
	case "linux":
		native, reason = vm.AcceleratorKVM, h.noKVM(guestArch)
	case "darwin":
		native, reason = vm.AcceleratorHVF, h.otherArch(guestArch)
	default:
		reason = "arcbox knows no hardware virtualisation of " + h.os
	}
	switch {
	case want == vm.AcceleratorTCG:
		return vm.AcceleratorTCG, "software emulation was asked for", nil
	case want == vm.AcceleratorAuto && reason == "":
		return native, "", nil
	case want == vm.AcceleratorAuto:
		return vm.AcceleratorTCG, reason, nil
	case want != vm.AcceleratorKVM && want != vm.AcceleratorHVF:
		return "", "", fmt.Errorf("accelerator %.40q: %w: use kvm, hvf, tcg or leave it empty", want, errs.ErrInvalid)
	case want != native:
		return "", "", fmt.Errorf("accelerator %s: %w on %s", want, errs.ErrUnsupported, h.os)
	case reason != "":
		return "", "", fmt.Errorf("accelerator %s: %w: %s", want, errs.ErrUnsupported, reason)
	}
	return native, "", nil
}

func (h host) otherArch(guestArch string) string {
	if h.arch != guestArch {
		return fmt.Sprintf("the guest is %s and the host %s", guestArch, h.arch)
	}
	return ""
}

// noKVM returns why KVM cannot be used, "" where it can. The device alone proves nothing on amd64: it may exist inside a
// virtual machine and run special guests only.
func (h host) noKVM(guestArch string) string {
	if r := h.otherArch(guestArch); r != "" {
		return r
	}
	if h.kvm != nil {
		return "/dev/kvm cannot be used: " + h.kvm.Error()
	}
	if h.arch == "amd64" && !h.virtCPU {
		return "/dev/kvm is there, but the processor shows neither vmx nor svm in /proc/cpuinfo"
	}
	return ""
}
