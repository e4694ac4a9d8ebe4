package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/arcboxlabs/arcbox-go"
)

const imageName = "bench:latest"

// prepare makes the image and loads it, and lets a machine boot once so that everything is cached.
func (b *suite) prepare() error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	b.archive = filepath.Join(b.dir, "bench.tar")
	if _, err := writeImage(b.archive, imageName, []file{
		{name: "bin/busybox", data: busybox, mode: 0o755}, {name: "bin/true", link: "busybox"}, {name: "bin/echo", link: "busybox"},
		{name: "bin/sleep", link: "busybox"}, {name: "bin/dd", link: "busybox"},
	}); err != nil {
		return err
	}
	rt, err := arcbox.New(b.config())
	if err != nil {
		return err
	}
	defer rt.Close()
	if _, err := rt.LoadImage(b.ctx, b.archive, arcbox.LoadOptions{}); err != nil {
		return err
	}
	_, err = start(b.ctx, rt)
	return err
}

// file is a file of a layer, or a symbolic link.
type file struct {
	name, link string
	data       []byte
	mode       int64
}

// writeImage writes an image of one layer as docker save does, and returns the layer's size.
func writeImage(to, ref string, files []file) (int64, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := map[string]bool{".": true}
	for _, f := range files {
		if d := path.Dir(f.name); !dirs[d] {
			dirs[d] = true
			if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return 0, err
			}
		}
		h := &tar.Header{Name: f.name, Mode: max(f.mode, 0o644), Size: int64(len(f.data))}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			return 0, err
		}
		if _, err := w.Write(f.data); err != nil {
			return 0, err
		}
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithCompressionLevel(0))
	if err != nil {
		return 0, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return 0, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return 0, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Cmd: []string{"true"}, Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return 0, err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return 0, err
	}
	return int64(b.Len()), tarball.WriteToFile(to, tag, img)
}
