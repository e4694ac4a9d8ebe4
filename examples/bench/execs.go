package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// long keeps a container running.
var long = []string{"sleep", "100000"}

// execs measures what happens in containers that run.
func (b *suite) execs() error {
	return b.withMachine(func(rt *arcbox.Runtime) error {
		p, err := rt.RunContainer(b.ctx, arcbox.ContainerSpec{Image: imageName, Args: long}, arcbox.RunOptions{})
		if err != nil {
			return err
		}
		var times []float64
		for range 5 * b.rounds {
			d, err := execTrue(b.ctx, rt, p.ContainerID())
			if err != nil {
				return err
			}
			times = append(times, ms(d))
		}
		report("exec_ms", "ms", times)
		if err := b.throughput(rt); err != nil {
			return err
		}
		return b.parallel(rt)
	})
}

// execTrue runs true in a running container, from the call to the exit.
func execTrue(ctx context.Context, rt *arcbox.Runtime, ref string) (time.Duration, error) {
	began := time.Now()
	p, err := rt.Exec(ctx, ref, arcbox.ExecSpec{Args: []string{"true"}}, arcbox.ExecOptions{})
	if err != nil {
		return 0, err
	}
	_, err = p.Wait(ctx)
	return time.Since(began), err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// throughput measures the output of a process as it comes to an attached writer.
func (b *suite) throughput(rt *arcbox.Runtime) error {
	const size = 64 << 20
	var all []float64
	for range b.rounds {
		var n counter
		began := time.Now()
		p, err := rt.RunContainer(b.ctx, arcbox.ContainerSpec{
			Image: imageName, Args: []string{"dd", "if=/dev/zero", "bs=64k", fmt.Sprint("count=", size>>16)}, AutoRemove: true,
		}, arcbox.RunOptions{Stdout: &n})
		if err != nil {
			return err
		}
		if _, err := p.Wait(b.ctx); err != nil {
			return err
		}
		if n != size {
			return fmt.Errorf("attach throughput: %d bytes came, not %d", n, size)
		}
		all = append(all, size/1e6/time.Since(began).Seconds())
	}
	report("attach_throughput_mb_s", "MB/s", all)
	return nil
}

// parallel measures 16 starts at once, until the last has exited.
func (b *suite) parallel(rt *arcbox.Runtime) error {
	const n = 16
	var all []float64
	for range b.rounds {
		errs := make(chan error, n)
		began := time.Now()
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() { _, err := start(b.ctx, rt); errs <- err })
		}
		wg.Wait()
		all = append(all, ms(time.Since(began)))
		for range n {
			if err := <-errs; err != nil {
				return err
			}
		}
	}
	report("parallel_start_16_ms", "ms", all)
	return nil
}

// lists measures a listing of 1000 containers, from the New of a Runtime that finds their records.
func (b *suite) lists() error {
	const n = 1000
	rt, err := arcbox.New(b.config())
	if err != nil {
		return err
	}
	c, err := rt.CreateContainer(b.ctx, arcbox.ContainerSpec{Image: imageName}, arcbox.CreateOptions{})
	if err == nil {
		err = rt.Close()
	}
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "containers")
	one, err := os.ReadFile(filepath.Join(dir, c.ID+".json"))
	if err != nil {
		return err
	}
	if !json.Valid(one) {
		return fmt.Errorf("the record of container %s is no JSON", c.ID)
	}
	for i := range n - 1 {
		id := fmt.Sprintf("%064x", i)
		text := strings.NewReplacer(c.ID, id, `"`+c.Name+`"`, `"`+id[52:]+`"`).Replace(string(one))
		if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	var all []float64
	for range b.rounds {
		began := time.Now()
		rt, err := arcbox.New(b.config())
		if err != nil {
			return err
		}
		infos, err := rt.ListContainers(b.ctx, arcbox.ListContainersOptions{})
		took := time.Since(began)
		if err == nil && len(infos) < n {
			err = fmt.Errorf("list: %d containers, not %d", len(infos), n)
		}
		if cerr := rt.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		all = append(all, ms(took))
	}
	report("list_1000_ms", "ms", all)
	return nil
}
