package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// docker measures docker run and arcbox in turn. It starts a dockerd of its own.
func (b *suite) docker() error {
	host := "unix://" + filepath.Join(b.dir, "docker.sock")
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	daemon := exec.CommandContext(ctx, "dockerd", "--host", host, "--data-root", filepath.Join(b.dir, "docker"),
		"--exec-root", filepath.Join(b.dir, "docker-run"), "--pidfile", filepath.Join(b.dir, "docker.pid"),
		"--bridge=none", "--iptables=false", "--ip6tables=false")
	daemon.Cancel = func() error { return daemon.Process.Signal(os.Interrupt) }
	log, err := daemon.StderrPipe()
	if err != nil {
		return err
	}
	if err := daemon.Start(); err != nil {
		return fmt.Errorf("start dockerd (install docker.io): %w", err)
	}
	defer func() { _ = daemon.Wait() }()
	defer cancel()
	if err := daemonReady(bufio.NewScanner(log)); err != nil {
		return err
	}
	docker := func(args ...string) error {
		out, err := exec.CommandContext(ctx, "docker", append([]string{"--host", host}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("docker %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	if err := b.dockerPulls(docker); err != nil {
		return err
	}
	if err := docker("load", "-i", b.archive); err != nil {
		return err
	}
	if err := b.dockerFirstRuns(ctx, host); err != nil {
		return err
	}
	return b.withMachine(func(rt *arcbox.Runtime) error {
		var theirs, ours []float64
		for range 3 * b.rounds {
			began := time.Now()
			if err := docker("run", "--rm", "--network=none", imageName, "true"); err != nil {
				return err
			}
			theirs = append(theirs, ms(time.Since(began)))
			d, err := start(ctx, rt)
			if err != nil {
				return err
			}
			ours = append(ours, ms(d))
		}
		report("docker_run_true_ms", "ms", theirs)
		report("arcbox_run_true_ms", "ms", ours)
		return b.dockerExec(ctx, docker, rt)
	})
}

// dockerFirstRuns measures docker run by a daemon that runs, and in turn with it a program that starts a machine for its container.
func (b *suite) dockerFirstRuns(ctx context.Context, host string) error {
	var theirs, theirOutput, ours, ratios []float64
	for range 3 * b.rounds {
		output, end, err := outputTime(exec.CommandContext(ctx, "docker", "--host", host, "run", "--rm", "--network=none", imageName, "echo", "hello"))
		if err != nil {
			return err
		}
		our, _, err := b.firstRunTime()
		if err != nil {
			return err
		}
		theirs, theirOutput = append(theirs, end), append(theirOutput, output)
		ours, ratios = append(ours, our), append(ratios, our/end)
	}
	report("docker_run_ms", "ms", theirs)
	report("docker_run_output_ms", "ms", theirOutput)
	report("first_run_beside_docker_ms", "ms", ours)
	report("first_run_docker_ratio", "times", ratios)
	return nil
}

// dockerExec measures true in a running container, by docker and by arcbox in turn.
func (b *suite) dockerExec(ctx context.Context, docker func(...string) error, rt *arcbox.Runtime) error {
	if err := docker(append([]string{"run", "-d", "--name=bench", "--network=none", imageName}, long...)...); err != nil {
		return err
	}
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Image: imageName, Args: long}, arcbox.RunOptions{})
	if err != nil {
		return err
	}
	var theirs, ours []float64
	for range 3 * b.rounds {
		began := time.Now()
		if err := docker("exec", "bench", "true"); err != nil {
			return err
		}
		theirs = append(theirs, ms(time.Since(began)))
		d, err := execTrue(ctx, rt, p.ContainerID())
		if err != nil {
			return err
		}
		ours = append(ours, ms(d))
	}
	report("docker_exec_ms", "ms", theirs)
	report("arcbox_exec_ms", "ms", ours)
	return docker("rm", "-f", "bench")
}

// daemonReady reads dockerd's log until it says that it listens, and lets it write on.
func daemonReady(log *bufio.Scanner) error {
	var last string
	for log.Scan() {
		last = log.Text()
		if strings.Contains(last, "API listen on") {
			go func() {
				for log.Scan() {
				}
			}()
			return nil
		}
	}
	return fmt.Errorf("dockerd ended: %s", last)
}
