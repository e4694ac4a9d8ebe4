package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestCommandLines(t *testing.T) {
	base := command{linux: true, tsc: 2_596_140, qmpFD: 3, consoleFD: 4, agentFD: 5, spec: vm.Spec{
		Name: "arcbox", Arch: "amd64", Kernel: "/boot/vmlinux", Initramfs: "/boot/initramfs", CPUs: 1, Memory: 512 << 20,
	}}
	arm := func(c *command) { c.spec.Arch, c.spec.Kernel = "arm64", "/boot/Image" }
	for name, change := range map[string]func(*command){
		"amd64-tcg": func(c *command) { c.accel = vm.AcceleratorTCG },
		"amd64-kvm": func(c *command) { c.accel = vm.AcceleratorKVM },
		"amd64-kvm-everything": func(c *command) {
			c.accel, c.spec.CPUs, c.spec.Memory, c.spec.Name = vm.AcceleratorKVM, 4, 3<<30, "my.vm_1"
			c.spec.Cmdline = "loglevel=7 arcbox.x=1"
			c.nicFD, c.vsockFD, c.vsockCID = 7, 6, 1073741824
			c.spec.Disks = []vm.Disk{{ID: "root", Path: "/d/a,b=\"c\".img", ReadOnly: true, Slot: 1}, {ID: "data-1", Path: "/d/data", Slot: 2}}
		},
		"amd64-memory-file": func(c *command) { c.accel, c.spec.MemoryFile = vm.AcceleratorTCG, "/t/mem,ory" },
		"amd64-from-state": func(c *command) {
			c.accel, c.spec.MemoryFile, c.spec.State = vm.AcceleratorTCG, "/t/memory", "/t/state"
		},
		"amd64-fork": func(c *command) {
			c.accel, c.memoryFD, c.spec.Forkable = vm.AcceleratorTCG, 6, true
			c.spec.MemoryFile, c.spec.State = "/t/memory", "/t/state"
			c.spec.Disks = []vm.Disk{{ID: "data", Path: "/d/data.qcow2", Backing: "/d/base.img", Slot: 3}}
		},
		"amd64-returns-memory": func(c *command) {
			c.accel, c.memoryFD, c.spec.ReturnMemory = vm.AcceleratorTCG, 6, true
			c.spec.MemoryFile, c.spec.State = "/t/memory", "/t/state"
		},
		"amd64-bays": func(c *command) {
			c.accel, c.spec.Bays = vm.AcceleratorTCG, []vm.Bay{{Size: 1 << 30}, {Size: 1 << 40, ReadOnly: true}}
			c.spec.Disks = []vm.Disk{{ID: "data", Path: "/d/data", Slot: 1}, {ID: "other", Path: "/d/other", ReadOnly: true, Slot: 3}}
		},
		"amd64-nic":          func(c *command) { c.accel, c.nicFD = vm.AcceleratorTCG, 6 },
		"amd64-no-initramfs": func(c *command) { c.accel, c.spec.Initramfs = vm.AcceleratorTCG, "" },
		"arm64-tcg":          func(c *command) { arm(c); c.accel = vm.AcceleratorTCG },
		"arm64-kvm":          func(c *command) { arm(c); c.accel = vm.AcceleratorKVM },
		"arm64-hvf":          func(c *command) { arm(c); c.accel, c.linux = vm.AcceleratorHVF, false },
		"amd64-hvf":          func(c *command) { c.accel, c.linux = vm.AcceleratorHVF, false },
		"amd64-tcg-mac":      func(c *command) { c.accel, c.linux = vm.AcceleratorTCG, false },
		"arm64-fork-mac": func(c *command) {
			arm(c)
			c.accel, c.linux, c.memoryFD, c.spec.Forkable = vm.AcceleratorTCG, false, 6, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := base
			change(&c)
			got := strings.Join(c.args(), "\n") + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

func TestAcceleratorChoice(t *testing.T) {
	const auto, kvm, hvf, tcg = vm.AcceleratorAuto, vm.AcceleratorKVM, vm.AcceleratorHVF, vm.AcceleratorTCG
	good := host{os: "linux", arch: "amd64", virtCPU: true}
	noFlag := host{os: "linux", arch: "amd64"}
	noDevice := host{os: "linux", arch: "amd64", virtCPU: true, kvm: os.ErrPermission}
	arm := host{os: "linux", arch: "arm64"}
	mac := host{os: "darwin", arch: "arm64", kvm: os.ErrNotExist}
	bsd := host{os: "freebsd", arch: "amd64", kvm: os.ErrNotExist}
	for _, c := range []struct {
		name   string
		host   host
		guest  string
		want   vm.Accelerator
		got    vm.Accelerator // "": ErrUnsupported
		reason string         // in it, or in the error
	}{
		{"kvm works", good, "amd64", auto, kvm, ""},
		{"kvm asked and works", good, "amd64", kvm, kvm, ""},
		{"tcg asked", good, "amd64", tcg, tcg, "asked for"},
		{"other architecture", good, "arm64", auto, tcg, "the guest is arm64 and the host amd64"},
		{"other architecture, kvm asked", good, "arm64", kvm, "", "the guest is arm64"},
		{"device without processor", noFlag, "amd64", auto, tcg, "neither vmx nor svm"},
		{"device without processor, kvm asked", noFlag, "amd64", kvm, "", "neither vmx nor svm"},
		{"no device", noDevice, "amd64", auto, tcg, "permission denied"},
		{"no device, kvm asked", noDevice, "amd64", kvm, "", "permission denied"},
		{"arm needs no flag", arm, "arm64", auto, kvm, ""},
		{"hvf on linux", good, "amd64", hvf, "", "on linux"},
		{"mac", mac, "arm64", auto, hvf, ""},
		{"mac, other architecture", mac, "amd64", auto, tcg, "the guest is amd64"},
		{"mac, hvf for another architecture", mac, "amd64", hvf, "", "the guest is amd64"},
		{"kvm on mac", mac, "arm64", kvm, "", "on darwin"},
		{"elsewhere", bsd, "amd64", auto, tcg, "no hardware virtualisation of freebsd"},
		{"kvm elsewhere", bsd, "amd64", kvm, "", "on freebsd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, reason, err := c.host.choose(c.guest, c.want)
			require.Equal(t, c.got, got)
			if c.got == "" {
				require.ErrorIs(t, err, errs.ErrUnsupported)
				require.ErrorContains(t, err, c.reason)
				return
			}
			require.NoError(t, err)
			require.Contains(t, reason, c.reason)
			require.Equal(t, c.reason == "", reason == "")
		})
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]Version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright": {7, 2, 22},
		"warning: something\nQEMU emulator version 10.1.0\n":                     {10, 1, 0},
		"QEMU emulator version 8.0":                                              {8, 0, 0},
	} {
		v, err := parseVersion([]byte(text))
		require.NoError(t, err)
		require.Equal(t, want, v)
	}
	for _, text := range []string{"", "QEMU emulator version ten", "xQEMU emulator version 8.0", "QEMU emulator version 99999999999999999999.1"} {
		_, err := parseVersion([]byte(text))
		require.Error(t, err, text)
	}
	require.NoError(t, MinVersion.check())
	require.NoError(t, Version{8, 0, 0}.check())
	require.ErrorIs(t, Version{7, 1, 99}.check(), errs.ErrUnsupported)
	require.True(t, Version{7, 2, 0}.Less(Version{7, 2, 1}))
	require.Contains(t, installHint("darwin", "arm64"), "brew install qemu")
	require.Contains(t, installHint("linux", "arm64"), "qemu-system-arm")
}
