package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// start runs true in a container and removes it.
func start(ctx context.Context, rt *arcbox.Runtime) (time.Duration, error) {
	began := time.Now()
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: imageName, Args: []string{"true"}}, arcbox.RunOptions{})
	if err != nil {
		return 0, err
	}
	if _, err := p.Wait(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, rt.RemoveContainer(ctx, p.ID(), arcbox.RemoveOptions{})
}

// containers measures starts in a running machine.
func (b *suite) containers() error {
	return b.withMachine(func(rt *arcbox.Runtime) error {
		var all []float64
		for range 5 * b.rounds {
			d, err := start(b.ctx, rt)
			if err != nil {
				return err
			}
			all = append(all, ms(d))
		}
		report("container_start_ms", "ms", all)
		return nil
	})
}

// withMachine calls fn with a Runtime whose machine runs and has the image's layers.
func (b *suite) withMachine(fn func(*arcbox.Runtime) error) error {
	return b.withMachineOf(b.config(), fn)
}

func (b *suite) withMachineOf(cfg arcbox.Config, fn func(*arcbox.Runtime) error) error {
	rt, err := arcbox.New(cfg)
	if err != nil {
		return err
	}
	defer rt.Close()
	if _, err := start(b.ctx, rt); err != nil {
		return err
	}
	return fn(rt)
}

// firstRuns measures what a user of a short program waits for.
func (b *suite) firstRuns() error {
	var all []float64
	for range b.rounds {
		output, _, err := b.firstRunTime()
		if err != nil {
			return err
		}
		all = append(all, output)
	}
	report("first_run_ms", "ms", all)
	return nil
}

// firstRunTime starts a program that runs a container in a machine of its own.
func (b *suite) firstRunTime() (output, end float64, err error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	return outputTime(exec.CommandContext(b.ctx, exe, "-first-run", b.dir))
}

// outputTime executes a command, and returns the ms to its first output and to its end.
func outputTime(cmd *exec.Cmd) (output, end float64, err error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	_, rerr := out.Read(make([]byte, 1))
	output = ms(time.Since(began))
	if err := cmd.Wait(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", cmd.Path, err)
	}
	if rerr != nil {
		return 0, 0, fmt.Errorf("%s printed nothing: %w", cmd.Path, rerr)
	}
	return output, ms(time.Since(began)), nil
}

// firstRun is the program that firstRuns measures.
func firstRun(ctx context.Context, dir string) error {
	b := &suite{dir: dir}
	rt, err := arcbox.New(b.config())
	if err != nil {
		return err
	}
	defer rt.Close()
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: imageName, Args: []string{"echo", "hello"}},
		arcbox.RunOptions{Stdout: os.Stdout})
	if err != nil {
		return err
	}
	_, err = p.Wait(ctx)
	return err
}

// layers measures how fast an uncompressed layer becomes part of the store.
func (b *suite) layers() error {
	const files, size = 4000, 48 << 10
	body := bytes.Repeat([]byte("arcbox layer "), size/13+1)[:size]
	var all []float64
	for i := range max(3, b.rounds/2) {
		layer := make([]file, files)
		for n := range layer {
			layer[n] = file{name: fmt.Sprintf("d%d/f%d", n/100, n), data: fmt.Appendf(bytes.Clone(body), "%d", i)}
		}
		archive := filepath.Join(b.dir, fmt.Sprintf("layer%d.tar", i))
		bytes, err := writeImage(archive, fmt.Sprintf("layer:%d", i), layer)
		if err != nil {
			return err
		}
		rt, err := arcbox.New(b.config())
		if err != nil {
			return err
		}
		began := time.Now()
		_, err = rt.LoadImage(b.ctx, archive, arcbox.LoadOptions{})
		took := time.Since(began)
		if err == nil {
			err = rt.Close()
		}
		if err == nil {
			err = os.Remove(archive)
		}
		if err != nil {
			return err
		}
		all = append(all, float64(bytes)/1e6/took.Seconds())
	}
	report("layer_convert_mb_s", "MB/s", all)
	return nil
}
