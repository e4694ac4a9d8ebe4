package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go"
)

// shares measures a directory of the host in a container. Kernels of Debian's cloud flavour have no 9p, so that there is
// nothing of QEMU's own to compare with.
func (b *suite) shares() error {
	dir := filepath.Join(b.dir, "shared")
	if err := makeTree(dir); err != nil {
		return err
	}
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "run"), "./bench/tree")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build (run this in the directory examples): %w: %s", err, out)
	}
	rt, err := arcbox.New(b.config())
	if err != nil {
		return err
	}
	defer rt.Close()
	values := map[string][]float64{}
	for range b.rounds {
		if err := b.shareOnce(rt, dir, values); err != nil {
			return err
		}
	}
	for _, v := range []struct{ name, unit string }{{"stat_us", "us"}, {"stat_cold_us", "us"}, {"miss_us", "us"}, {"read_mb_s", "MB/s"}, {"write_mb_s", "MB/s"}, {"walk_ms", "ms"}} {
		name := "share_" + v.name
		if v.name == "walk_ms" {
			name = "share_walk_10000_ms"
		}
		report(name, v.unit, values[v.name])
	}
	return nil
}

// makeTree makes 10,000 files in 100 directories, as a work tree has them, and some more in one.
func makeTree(dir string) error {
	for i := range 100 {
		sub := filepath.Join(dir, "tree", fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), []byte("text\n"), 0o644); err != nil {
				return err
			}
		}
	}
	flat := filepath.Join(dir, "flat")
	if err := os.Mkdir(flat, 0o755); err != nil {
		return err
	}
	for i := range 500 {
		if err := os.WriteFile(filepath.Join(flat, fmt.Sprint(i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// shareOnce runs the program in a container and adds what it prints.
func (b *suite) shareOnce(rt *arcbox.Runtime, dir string, values map[string][]float64) error {
	var stdout, stderr bytes.Buffer
	p, err := rt.RunContainer(b.ctx, arcbox.ContainerSpec{
		Image: imageName, Entrypoint: []string{"/s/run"}, Args: []string{"/s"}, AutoRemove: true,
		Mounts: []arcbox.Mount{{Type: arcbox.MountBind, Source: dir, Target: "/s"}},
	}, arcbox.RunOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return err
	}
	exit, err := p.Wait(b.ctx)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("exit code %d: %s", exit.Code, stderr.String())
	}
	for lines := bufio.NewScanner(&stdout); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		var value float64
		if _, err := fmt.Sscan(text, &value); err != nil {
			return fmt.Errorf("read %q: %w", lines.Text(), err)
		}
		values[name] = append(values[name], value)
	}
	return nil
}
