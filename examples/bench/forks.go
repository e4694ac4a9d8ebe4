package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/arcboxlabs/arcbox-go"
)

// clones is how many machines are started at once, and idleTime how long one is watched that has nothing to do.
const (
	clones   = 20
	idleTime = 5 * time.Second
)

// forks measures snapshots of a machine with a container that runs, and the children that go on from them.
func (b *suite) forks() error {
	cfg := b.config()
	cfg.Ephemeral, cfg.VM.Forkable = true, true
	rt, err := arcbox.New(cfg)
	if err != nil {
		return err
	}
	defer rt.Close()
	spec := arcbox.ContainerSpec{Name: "warm", Image: imageName, Args: []string{"sleep", "1000"}}
	if _, err := rt.RunContainer(b.ctx, spec, arcbox.RunOptions{}); err != nil {
		return err
	}
	var saves, children []float64
	for i := range b.rounds {
		began := time.Now()
		snap, err := rt.SnapshotMachine(b.ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Temporary: true})
		if err != nil {
			return err
		}
		saves = append(saves, ms(time.Since(began)))
		name := fmt.Sprint("child", i)
		began = time.Now()
		if _, err := rt.CreateMachine(b.ctx, arcbox.MachineSpec{Name: name, Snapshot: snap.ID}); err != nil {
			return err
		}
		if err := rt.StartMachine(b.ctx, name); err != nil {
			return err
		}
		children = append(children, ms(time.Since(began)))
		if err := rt.RemoveMachine(b.ctx, name, arcbox.RemoveMachineOptions{Force: true}); err != nil {
			return err
		}
		if err := rt.RemoveSnapshot(b.ctx, snap.ID); err != nil {
			return err
		}
	}
	report("snapshot_ms", "ms", saves)
	report("fork_ms", "ms", children)
	return nil
}

// clonesAtOnce measures many machines of one template, and what one of them costs that has nothing to do.
func (b *suite) clonesAtOnce() error {
	cfg := b.config()
	cfg.Ephemeral = true
	rt, err := arcbox.New(cfg)
	if err != nil {
		return err
	}
	defer rt.Close()
	before := machineProcesses()
	if err := rt.StartMachine(b.ctx, arcbox.DefaultMachine); err != nil {
		return err
	}
	idle := added(before)
	if len(idle) != 1 {
		return fmt.Errorf("%d processes for one machine", len(idle))
	}
	for pid := range idle {
		if err := b.wait(idleTime); err != nil { // for what a machine does at its start
			return err
		}
		cpu, began := cpuTime(pid), time.Now()
		if err := b.wait(idleTime); err != nil {
			return err
		}
		report("idle_cpu_percent", "%", []float64{float64(cpuTime(pid)-cpu) / float64(time.Since(began)) * 100})
		report("idle_rss_mb", "MB", []float64{field(pid, "status", "VmRSS:")})
	}
	before = machineProcesses()
	began := time.Now()
	var g errgroup.Group
	for i := range clones {
		g.Go(func() error {
			name := fmt.Sprint("clone", i)
			if _, err := rt.CreateMachine(b.ctx, arcbox.MachineSpec{Name: name}); err != nil {
				return err
			}
			return rt.StartMachine(b.ctx, name)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	report(fmt.Sprintf("parallel_clones_%d_ms", clones), "ms", []float64{ms(time.Since(began))})
	var private []float64
	for pid := range added(before) {
		private = append(private, field(pid, "smaps_rollup", "Private_Clean:")+field(pid, "smaps_rollup", "Private_Dirty:"))
	}
	report("clone_private_mb", "MB", private)
	return nil
}

// wait waits for a time.
func (b *suite) wait(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// machineProcesses returns the children of this process.
func machineProcesses() map[int]bool {
	out := make(map[int]bool)
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		b, _ := os.ReadFile(task) // a thread may end
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				out[pid] = true
			}
		}
	}
	return out
}

func added(before map[int]bool) map[int]bool {
	now := machineProcesses()
	for pid := range before {
		delete(now, pid)
	}
	return now
}

// field returns a number of KiB in a file of a process, in MB.
func field(pid int, file, name string) float64 {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// cpuTime returns the processor time of a process. The kernel counts in hundredths of a second.
func cpuTime(pid int) time.Duration {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := bytes.Cut(b, []byte(") "))
	f := strings.Fields(string(rest))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
