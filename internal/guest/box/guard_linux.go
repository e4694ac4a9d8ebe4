package box

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insn is one instruction of eBPF.
type insn struct {
	code uint8
	regs uint8 // destination in the low half, source in the high one
	off  int16
	imm  int32
}

// The instructions and constants of the kernel that the device program needs.
const (
	insLoad   = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	insJeq    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	insJne    = unix.BPF_JMP | 0x50 | unix.BPF_K // BPF_JNE
	insAnd    = 0x07 | unix.BPF_AND | unix.BPF_K // BPF_ALU64
	insRsh    = 0x07 | unix.BPF_RSH | unix.BPF_K
	insMov    = 0x07 | 0xb0 | unix.BPF_K // BPF_MOV
	insExit   = unix.BPF_JMP | 0x90
	devMknod  = 1  // BPF_DEVCG_ACC_MKNOD
	devChar   = 2  // BPF_DEVCG_DEV_CHAR
	typeDev   = 15 // BPF_PROG_TYPE_CGROUP_DEVICE
	attachDev = 6  // BPF_CGROUP_DEVICE
	cmdLoad   = 5  // BPF_PROG_LOAD
	cmdAttach = 8  // BPF_PROG_ATTACH
)

// deviceProgram returns a program that decides which devices the processes of a cgroup may use: those of a container's
// /dev and its terminals. Nodes of all devices may be made, and not be opened. So root in a container does not reach the
// disks of other containers, or the port to the host.
func deviceProgram() []insn {
	const anyMinor = -1
	allowed := []struct{ major, minor int32 }{{5, 2}, {136, anyMinor}}
	for _, d := range devices() {
		allowed = append(allowed, struct{ major, minor int32 }{int32(d.major), int32(d.minor)})
	}
	// The context in r1 has the type and, in the high half, the access; then the major and the minor number.
	p := []insn{
		{insLoad, 2 | 1<<4, 0, 0},
		{insLoad, 4 | 1<<4, 4, 0},
		{insLoad, 5 | 1<<4, 8, 0},
		{insMov | 0x08, 3 | 2<<4, 0, 0},
		{insRsh, 3, 0, 16},
		{insJne, 3, 2, devMknod},
		{insMov, 0, 0, 1},
		{insExit, 0, 0, 0},
		{insAnd, 2, 0, 0xffff},
		{insJeq, 2, 2, devChar},
		{insMov, 0, 0, 0},
		{insExit, 0, 0, 0},
	}
	for _, d := range allowed {
		if d.minor == anyMinor {
			p = append(p, insn{insJne, 4, 2, d.major})
		} else {
			p = append(p, insn{insJne, 4, 3, d.major}, insn{insJne, 5, 2, d.minor})
		}
		p = append(p, insn{insMov, 0, 0, 1}, insn{insExit, 0, 0, 0})
	}
	return append(p, insn{insMov, 0, 0, 0}, insn{insExit, 0, 0, 0})
}

// guardDevices makes the device program decide for a cgroup and all below it.
func guardDevices(dir string) error {
	prog := deviceProgram()
	license := []byte("Apache-2.0\x00")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&prog[0])
	pin.Pin(&license[0])
	load := struct {
		kind, count    uint32
		insns, license uint64
		rest           [24]byte // log and kernel version
	}{kind: typeDev, count: uint32(len(prog)), insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, e := unix.Syscall(unix.SYS_BPF, cmdLoad, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	if e != 0 {
		return fmt.Errorf("load the device program: %w: the guest's kernel needs CONFIG_CGROUP_BPF", e)
	}
	defer unix.Close(int(fd))
	cg, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup %s: %w", dir, err)
	}
	defer unix.Close(cg)
	attach := struct{ target, prog, kind, flags uint32 }{uint32(cg), uint32(fd), attachDev, 0}
	if _, _, e := unix.Syscall(unix.SYS_BPF, cmdAttach, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); e != 0 {
		return fmt.Errorf("attach the device program: %w", e)
	}
	return nil
}
