package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// Names of what the command line makes and QMP commands refer to.
const (
	agentPort = "arcbox.agent" // the virtio-serial port on which the guest's agent listens
	agentDev  = "agent"        // its device id, which events name
	scsiBus   = "scsi.0"
	nicMAC    = "02:61:72:63:62:78" // of every machine's interface: no frame is sent under it
	diskNode  = "disk-"             // before a disk's ID: its block node and its device
)

// nicMTU is the largest packet of the network interface in bytes.
const nicMTU = 65000

// command is everything a QEMU command line depends on. args turns it into text and looks at nothing else.
type command struct {
	spec  vm.Spec // completed, with absolute paths
	accel vm.Accelerator
	linux bool // of the host: processes can be renamed, there is seccomp, and /proc
	tsc   int  // rate of an emulated amd64 processor's time stamp counter in kHz; 0 lets the guest measure it

	qmpFD, consoleFD, agentFD int // sockets that QEMU inherits

	nicFD    int    // the socket of the network interface; 0 for none
	memoryFD int    // the machine's own memory; 0 for none
	vsockFD  int    // /dev/vhost-vsock with its context ID set; 0 for none
	vsockCID uint32 // that context ID
}

// args returns the arguments after the program's name.
func (c command) args() []string {
	return join(c.base(), c.memory(), c.sockets(), c.devices(), c.bays(), c.disks(), c.boot(), c.incoming())
}

func join(parts ...[]string) []string {
	var all []string
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// base is the machine without anything in it.
func (c command) base() []string {
	name := "guest=" + c.spec.Name
	if c.linux {
		name += ",process=" + c.spec.Name
	}
	accel := string(c.accel)
	if c.accel == vm.AcceleratorTCG {
		accel = "tcg,thread=multi"
	}
	a := []string{
		"-name", name,
		"-machine", c.machine() + c.backend(),
		"-accel", accel,
		"-cpu", c.cpu(),
		"-smp", strconv.Itoa(c.spec.CPUs),
		"-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none",
	}
	if c.linux {
		a = append(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	return a
}

func (c command) machine() string {
	if c.spec.Arch == "arm64" {
		if c.accel == vm.AcceleratorTCG {
			return "virt,gic-version=3"
		}
		return "virt,gic-version=max"
	}
	// What is left out is not needed by the guest and would only be there to be attacked.
	return "q35,usb=off,vmport=off,sata=off,smbus=off,hpet=off"
}

func (c command) cpu() string {
	switch {
	case c.accel != vm.AcceleratorTCG:
		return "host"
	case c.spec.Arch == "arm64":
		return "max,pauth-impdef=on" // the architected algorithm of pointer authentication is slow to emulate
	}
	// Where the processor says that it copies bytes fast, kernels copy and clear memory by "rep movsb" and "rep stosb",
	// which are emulated byte by byte. Without, they take eight at a time.
	cpu := "max,erms=off,fsrm=off"
	if c.backend() != "" {
		// QEMU's random numbers come from a generator in its memory, which is the same in all that go on from one image of it.
		cpu += ",rdrand=off,rdseed=off"
	}
	return cpu
}

// memory is the guest's RAM: anonymous, which is the cheapest where nobody shares it, or a file. A machine that goes on
// from a saved state maps the file privately. It must have no device that gives memory back, such as a balloon: that
// would punch holes into the file, and change what all others go on from.
func (c command) memory() []string {
	size := strconv.FormatInt(c.spec.Memory>>20, 10) + "M"
	a := []string{"-m", size}
	path, share := c.spec.MemoryFile, c.spec.State == "" || c.spec.OwnMemory
	switch {
	case c.memoryFD != 0: // never the file that others go on from
		dir := "/dev/fd"
		if c.linux {
			dir = "/proc/self/fd" // there /dev/fd is a link that may be missing
		}
		path, share = fmt.Sprintf("%s/%d", dir, c.memoryFD), true
	case path == "":
		return a
	}
	return append(a, "-object", text(map[string]any{
		"qom-type": "memory-backend-file", "id": "ram", "size": c.spec.Memory, "mem-path": path, "share": share,
	}))
}

// backend says that the machine's memory is the file.
func (c command) backend() string {
	if c.spec.MemoryFile == "" && c.memoryFD == 0 {
		return ""
	}
	return ",memory-backend=ram"
}

// incoming lets the machine wait for the state that it goes on from.
func (c command) incoming() []string {
	if c.spec.State == "" {
		return nil
	}
	return []string{"-incoming", "defer"}
}

// sockets are the control socket and the console.
func (c command) sockets() []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", c.qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", c.consoleFD),
		"-serial", "chardev:console",
	}
}

func (c command) devices() []string {
	a := []string{
		"-device", "virtio-serial-pci,id=ports,max_ports=4",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", c.agentFD),
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=agent,id=" + agentDev + ",name=" + agentPort,
		"-object", c.rng(),
		"-device", "virtio-rng-pci,rng=rng",
		"-device", "virtio-scsi-pci,id=scsi",
	}
	if c.spec.ReturnMemory {
		a = append(a, "-device", "virtio-balloon-pci,free-page-reporting=on")
	}
	if c.nicFD != 0 {
		// The interface of a container has an address of its own, and a large frame costs as little as a small one. A guest
		// that boots from it is not wanted, so it has no option ROM.
		a = append(a, "-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", c.nicFD),
			// Without its filter of VLANs, which QEMU 7.2 forgets when it restores a machine. And such a machine need not
			// announce itself: the interface at the other end is as new as it is.
			"-device", "virtio-net-pci,ctrl_vlan=off,guest_announce=off,netdev=net,id=nic,romfile=,mac="+nicMAC+",host_mtu="+strconv.Itoa(nicMTU))
	}
	if c.vsockFD != 0 {
		a = append(a, "-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d,vhostfd=%d", c.vsockCID, c.vsockFD))
	}
	return a
}

// rng is where the guest's device of random numbers has them from: the host's kernel, and no generator in QEMU's memory,
// which may be saved.
func (c command) rng() string {
	if c.linux {
		return "rng-random,id=rng,filename=/dev/urandom"
	}
	return "rng-builtin,id=rng"
}

func (c command) disks() []string {
	var a []string
	for _, d := range c.spec.Disks {
		a = append(a, "-blockdev", text(blockNode(d)))
		if _, ok := c.spec.Bay(d.Slot); !ok {
			a = append(a, "-device", text(diskDevice(d, d.Slot-1)))
		}
	}
	return a
}

// blockNode is the block node of a disk, for the command line and for blockdev-add. The host's page cache is used, and a
// guest that flushes its disk has synced the file. What the guest discards, or overwrites with zeros, becomes a hole.
func blockNode(d vm.Disk) map[string]any {
	n := map[string]any{
		"driver": "raw", "node-name": diskNode + d.ID, "read-only": d.ReadOnly, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": d.Path, "read-only": d.ReadOnly, "discard": "unmap"},
	}
	if !d.ReadOnly {
		n["detect-zeroes"] = "unmap"
	}
	if d.Backing != "" {
		n["driver"] = "qcow2"
		n["backing"] = map[string]any{
			"driver": "raw", "read-only": true, "file": map[string]any{"driver": "file", "filename": d.Backing, "read-only": true},
		}
	}
	return n
}

// diskDevice is the device of a disk, for the command line and for device_add.
func diskDevice(d vm.Disk, lun int) map[string]any {
	return scsiDisk(diskNode+d.ID, diskNode+d.ID, d.ID, lun, d.ReadOnly)
}

// scsiDisk is a device with a block node in it. Errors go to the guest, which knows what to do about them: QEMU by itself
// stops the machine when the host's file system is full, and then nothing answers.
func scsiDisk(id, node, serial string, lun int, readOnly bool) map[string]any {
	dev := map[string]any{
		"driver": "scsi-hd", "bus": scsiBus, "lun": lun,
		"id": id, "drive": node, "serial": serial, "device_id": serial, "rerror": "report",
	}
	if !readOnly {
		dev["werror"] = "report"
	}
	return dev
}

// text is a value as JSON, which QEMU takes in place of its own syntax: paths may have commas in them.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("qemu: " + err.Error()) // maps of strings, numbers and bools
	}
	return string(b)
}

func (c command) boot() []string {
	a := []string{"-kernel", c.spec.Kernel}
	if c.spec.Initramfs != "" {
		a = append(a, "-initrd", c.spec.Initramfs)
	}
	return append(a, "-append", c.cmdline())
}

// cmdline is the kernel's command line. A panic restarts the machine at once, which -no-reboot turns into its end.
func (c command) cmdline() string {
	words := append(bootfs.KernelParameters(), "panic=-1")
	if c.spec.Arch == "arm64" {
		words = append(words, "console=ttyAMA0")
	} else {
		words = append(words, "console=ttyS0", "reboot=t", "8250.nr_uarts=1")
	}
	if c.accel == vm.AcceleratorTCG {
		// An emulated processor has no speculation to defend against, and its clock is what QEMU says.
		words = append(words, "mitigations=off", "nokaslr")
		if c.spec.Arch == "amd64" {
			words = append(words, "tsc=reliable", "no_timer_check")
			if c.tsc != 0 {
				words = append(words, "tsc_early_khz="+strconv.Itoa(c.tsc))
			}
		}
	}
	if c.spec.Cmdline != "" {
		words = append(words, c.spec.Cmdline)
	}
	return strings.Join(words, " ")
}
