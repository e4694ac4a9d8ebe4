package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/arcboxlabs/arcbox-go"
)

// pullRef is the image for pulls, in a registry of the benchmark's own.
const pullRepo, layerSize, pullLayers = "debian-sized", 36 << 20, 5

// pulls measures what it takes to have an image of the size of a distribution, ready to run: by arcbox in a process of
// its own, and by skopeo and umoci where they are installed.
func (b *suite) pulls() error {
	ref, stop, err := b.serve()
	if err != nil {
		return err
	}
	defer stop()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	tools := hasTools("skopeo", "umoci")
	var ours, theirs, peak []float64
	for i := range b.rounds {
		dir := filepath.Join(b.dir, "pull-"+strconv.Itoa(i))
		began := time.Now()
		out, err := exec.CommandContext(b.ctx, exe, "-pull", ref, "-into", dir).Output()
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		ours = append(ours, ms(time.Since(began)))
		kb, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil {
			return err
		}
		peak = append(peak, kb*1024/1e6)
		if tools {
			d, err := skopeoUmoci(b.ctx, dir, ref)
			if err != nil {
				return err
			}
			theirs = append(theirs, ms(d))
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	report("pull_ms", "ms", ours)
	report("pull_peak_mb", "MB", peak)
	if tools {
		report("skopeo_umoci_ms", "ms", theirs)
	}
	return nil
}

func hasTools(names ...string) bool {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return false
		}
	}
	return true
}

// pullOnce pulls an image and prints the most memory that it took, in KiB. It runs in a process of its own.
func pullOnce(ctx context.Context, ref, dir string) error {
	rt, err := arcbox.New(arcbox.Config{DataDir: dir})
	if err != nil {
		return err
	}
	defer rt.Close()
	if _, err := rt.PullImage(ctx, ref, arcbox.PullOptions{}); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Println(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return nil
		}
	}
	return errors.New("no VmHWM in /proc/self/status")
}

// skopeoUmoci does the same with two programs: a copy into an OCI layout, and its layers unpacked into a directory.
func skopeoUmoci(ctx context.Context, dir, ref string) (time.Duration, error) {
	layout := filepath.Join(dir, "layout")
	began := time.Now()
	for _, args := range [][]string{
		{"skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://" + ref, "oci:" + layout + ":x"},
		{"umoci", "unpack", "--image", layout + ":x", filepath.Join(dir, "bundle")},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return time.Since(began), nil
}

// dockerPulls measures docker pull of the same image.
func (b *suite) dockerPulls(docker func(...string) error) error {
	ref, stop, err := b.serve()
	if err != nil {
		return err
	}
	defer stop()
	var all []float64
	for range b.rounds {
		began := time.Now()
		if err := docker("pull", "--quiet", ref); err != nil {
			return err
		}
		all = append(all, ms(time.Since(began)))
		if err := docker("rmi", "-f", ref); err != nil {
			return err
		}
	}
	report("docker_pull_ms", "ms", all)
	return nil
}

// serve starts a registry with the image, whose files are those of this system.
func (b *suite) serve() (ref string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(b.dir, "registry")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, errors.Join(err, l.Close())
	}
	srv := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	stop = func() {
		_ = srv.Close()
		<-done
	}
	ref = l.Addr().String() + "/" + pullRepo + ":1"
	if err := pushSystem(b.ctx, ref); err != nil {
		stop()
		return "", nil, err
	}
	return ref, stop, nil
}

// pushSystem makes the image: as many layers as a distribution's image with a few things on it has, of as many files of
// this system as make the size.
func pushSystem(ctx context.Context, ref string) error {
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return err
	}
	var bufs [pullLayers]bytes.Buffer
	i := 0
	tw := tar.NewWriter(&bufs[0])
	seen := map[string]bool{}
	for _, dir := range []string{"/usr/share", "/usr/bin", "/usr/lib", "/usr/sbin"} {
		left := pullLayers * layerSize / 3
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || seen[path] {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil || len(data) > 8<<20 {
				return nil
			}
			seen[path] = true
			if left -= len(data); left < 0 {
				return fs.SkipAll
			}
			if bufs[i].Len()+len(data) > layerSize {
				if i == pullLayers-1 {
					return fs.SkipAll
				}
				if err := tw.Close(); err != nil {
					return err
				}
				i++
				tw = tar.NewWriter(&bufs[i])
			}
			if err := tw.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o755, Size: int64(len(data))}); err != nil {
				return err
			}
			_, err = tw.Write(data)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	for i := range bufs {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(bufs[i].Bytes())), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			return err
		}
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx))
}
