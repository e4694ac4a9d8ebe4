package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// helloAgent loads the modules of the first two stages, says how many it could, and powers off.
const helloAgent = `package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

const finitModule = 313*isAMD64 + 273*(1-isAMD64)

func main() {
	b, err := os.ReadFile("/etc/arcbox/modules")
	if err != nil {
		fmt.Println("AGENT", err)
	}
	loaded := 0
	for _, line := range strings.Split(string(b), "\n") {
		stage, p, _ := strings.Cut(line, " ")
		if stage != "early" && stage != "late" {
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			fmt.Println("AGENT", err)
			continue
		}
		empty := [1]byte{}
		if _, _, errno := syscall.Syscall(finitModule, f.Fd(), uintptr(unsafe.Pointer(&empty)), 0); errno != 0 {
			fmt.Println("AGENT", p, errno)
			continue
		}
		f.Close()
		loaded++
	}
	fmt.Println("AGENT loaded", loaded, "modules")
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
`

// TestSystemKernelBoots takes the distribution's kernel of each architecture as a user would get it, once from the
// system's package lists where they have it, and boots it to a program that loads the modules.
func TestSystemKernelBoots(t *testing.T) {
	for arch, machine := range map[string][]string{
		"amd64": {"qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-append", "console=ttyS0 quiet panic=-1"},
		"arm64": {"qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on", "-append", "console=ttyAMA0 quiet panic=-1"},
	} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			needs.Program(t, "apt-get")
			agent := filepath.Join(t.TempDir(), "agent")
			goBuild(t, arch, helloAgent, agent)
			start := time.Now()
			a, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: arch, Agent: agent, Progress: reportTo(t)})
			require.NoError(t, err)
			t.Logf("%s in %v", a.Source, time.Since(start))
			require.NotEmpty(t, a.Release)
			console := qemu(t, machine, a)
			require.Contains(t, console, fmt.Sprintf("AGENT loaded %d modules", loadable(t, a)))
			require.NotContains(t, console, "AGENT /", "a module that did not load")
			require.Greater(t, loadable(t, a), 5)
		})
	}
}

func reportTo(t *testing.T) func(Progress) {
	return func(p Progress) {
		if p.Done == p.Total {
			t.Logf("%s: %d", p.Step, p.Total)
		}
	}
}

func goBuild(t *testing.T, arch, program, out string) {
	t.Helper()
	dir := t.TempDir()
	header := map[string]string{"amd64": "const isAMD64 = 1\n", "arm64": "const isAMD64 = 0\n"}[arch]
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(program+header), 0o600))
	cmd := exec.Command(needGo(t), "build", "-ldflags=-s -w", "-o", out, "main.go")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GO111MODULE=off")
	b, err := cmd.CombinedOutput()
	require.NoError(t, err, string(b))
}

// loadable counts the modules of the first two stages that the initramfs lists.
func loadable(t *testing.T, a *Assets) int {
	t.Helper()
	b, err := os.ReadFile(a.Initramfs)
	require.NoError(t, err)
	n := 0
	for _, line := range strings.Split(string(b), "\n") {
		for _, stage := range []bootfs.Stage{bootfs.Early, bootfs.Late} {
			if rest, ok := strings.CutPrefix(line[max(0, strings.LastIndexByte(line, 0)+1):], string(stage)+" "); ok && strings.HasPrefix(rest, bootfs.ModulesDir) {
				n++
			}
		}
	}
	return n
}

// qemu boots the assets and returns the console's output once the guest has powered off.
func qemu(t *testing.T, machine []string, a *Assets) string {
	t.Helper()
	p := needs.Program(t, machine[0])
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	args := append([]string{"-accel", "tcg", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", a.Kernel, "-initrd", a.Initramfs}, machine[1:]...)
	cmd := exec.CommandContext(ctx, p, args...)
	out, err := cmd.CombinedOutput()
	if err = errors.Join(err, ctx.Err()); err != nil || t.Failed() {
		t.Logf("repeat with: %s %q", p, args)
	}
	require.NoError(t, err, string(out))
	return string(out)
}
