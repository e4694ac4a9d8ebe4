package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
)

// boots measures the floor, the cold boot and the clone in turn, so that all see the same noise.
func (b *suite) boots() error {
	floor, err := b.floorCommand()
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	var floors, colds, clones []float64
	for range b.rounds {
		f, err := floorBoot(b.ctx, floor)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		cold, err := b.ready(arcbox.TemplateOff)
		if err != nil {
			return fmt.Errorf("cold boot: %w", err)
		}
		clone, err := b.ready(arcbox.TemplateAuto)
		if err != nil {
			return fmt.Errorf("clone: %w", err)
		}
		floors, colds, clones = append(floors, ms(f)), append(colds, ms(cold)), append(clones, ms(clone))
	}
	report("floor_boot_ms", "ms", floors)
	report("cold_boot_ms", "ms", colds)
	report("clone_boot_ms", "ms", clones)
	return nil
}

// floorCommand is the command line of a QEMU that boots the same kernel into the least of an /init. Kernel command line,
// machine, processor and accelerator are those that the driver uses: they are read off a machine that it has started.
func (b *suite) floorCommand() ([]string, error) {
	assets, err := boot.Resolve(b.ctx, boot.Config{Dir: filepath.Join(b.dir, "boot")})
	if err != nil {
		return nil, err
	}
	init := filepath.Join(b.dir, "floor-init")
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./bench/floor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build init (run this in the directory examples): %w: %s", err, out)
	}
	least, err := boot.Resolve(b.ctx, boot.Config{Dir: filepath.Join(b.dir, "floor"), Kernel: assets.Kernel, Agent: init})
	if err != nil {
		return nil, err
	}
	inst, err := qemu.New(qemu.Config{}).Start(b.ctx, vm.Spec{
		Name: "arcbox-floor", Kernel: least.Kernel, Initramfs: least.Initramfs, CPUs: 2, Memory: 512 << 20,
	})
	if err != nil {
		return nil, err
	}
	defer inst.Close()
	args, err := commandLine("arcbox-floor")
	if err != nil {
		return nil, err
	}
	keep := []string{"-M", "-machine", "-accel", "-cpu", "-m", "-smp", "-kernel", "-initrd", "-append", "-object"}
	out := []string{args[0], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"}
	for i := 1; i+1 < len(args); i++ {
		if slices.Contains(keep, args[i]) && (args[i] != "-object" || strings.HasPrefix(args[i+1], "memory-backend")) {
			out = append(out, args[i], args[i+1])
		}
	}
	return out, nil
}

// commandLine returns the arguments of the QEMU whose name contains a text.
func commandLine(name string) ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(raw), name) && strings.Contains(string(raw), "-append") {
			return strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00"), nil
		}
	}
	return nil, errors.New("no QEMU with the name " + name)
}

func floorBoot(ctx context.Context, args []string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "FLOOR") {
			return time.Since(began), nil
		}
	}
	return 0, errors.New("/init did not report")
}

// ready measures from when there is all that a machine is started from to its agent's answers.
func (b *suite) ready(mode arcbox.TemplateMode) (time.Duration, error) {
	cfg := b.config()
	cfg.VM.Template = mode
	rt, err := arcbox.New(cfg)
	if err != nil {
		return 0, err
	}
	defer rt.Close()
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	events := rt.Events(ctx, arcbox.EventsOptions{Kinds: []event.Kind{event.MachineBooting, event.MachineReady}})
	if err := rt.StartMachine(ctx, arcbox.DefaultMachine); err != nil {
		return 0, err
	}
	booting, ready := <-events, <-events
	return ready.Time.Sub(booting.Time), nil
}
