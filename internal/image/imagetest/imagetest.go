// Package imagetest makes images for tests: layers from Go values, written as OCI layouts, OCI archives and Docker
// archives, or served by a registry in the test's own process.
package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// File is an entry of a layer.
type File struct {
	Type     byte // as in archive/tar; 0 is a regular file
	Mode     int64
	Uid, Gid int
	Data     []byte
	Link     string // target of a symbolic or hard link
	ModTime  time.Time
	Xattrs   map[string]string
	Major    int64
	Minor    int64
}

// Layer is a layer of an image, in memory.
type Layer struct {
	Tar       []byte // uncompressed
	Blob      []byte // as it is stored
	MediaType string
}

// DiffID returns the digest of the uncompressed archive.
func (l Layer) DiffID() digest.Digest { return digest.FromBytes(l.Tar) }

// Entry is a file with its name.
type Entry struct {
	Name string
	File
}

// Tar returns an archive with the entries in order.
func Tar(tb testing.TB, entries ...Entry) []byte {
	tb.Helper()
	size := 0
	for _, e := range entries {
		size += len(e.Data) + 4<<10 // the header and its PAX records, mostly
	}
	var buf bytes.Buffer
	buf.Grow(size)
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Format: tar.FormatPAX, Typeflag: e.Type, Name: e.Name, Mode: e.Mode, Uid: e.Uid, Gid: e.Gid,
			Linkname: e.Link, ModTime: e.ModTime, Devmajor: e.Major, Devminor: e.Minor,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.Data))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		for k, v := range e.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatalf("write header of %q: %v", e.Name, err)
		}
		if _, err := w.Write(e.Data); err != nil {
			tb.Fatalf("write %q: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// Plain, Gzip and Zstd make a layer of an archive.
func Plain(tarball []byte) Layer {
	return Layer{Tar: tarball, Blob: tarball, MediaType: ocispec.MediaTypeImageLayer}
}

// Gzip makes a layer compressed with gzip, as fast as can be: the race detector makes it four times as slow.
func Gzip(tarball []byte) Layer {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // the level is one that exists
	_, _ = w.Write(tarball)                           // a bytes.Buffer takes everything
	_ = w.Close()
	return Layer{Tar: tarball, Blob: buf.Bytes(), MediaType: ocispec.MediaTypeImageLayerGzip}
}

// Zstd makes a layer compressed with zstd.
func Zstd(tb testing.TB, tarball []byte) Layer {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return Layer{Tar: tarball, Blob: w.EncodeAll(tarball, nil), MediaType: ocispec.MediaTypeImageLayerZstd}
}

// Files makes a gzip layer of the files, in the order of their names, with the directories above them.
func Files(tb testing.TB, files map[string]File) Layer {
	tb.Helper()
	names := make([]string, 0, len(files))
	dirs := map[string]bool{}
	for name := range files {
		names = append(names, name)
		for d := path.Dir(name); d != "." && d != "/"; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for d := range dirs {
		if _, ok := files[d]; !ok {
			names = append(names, d)
		}
	}
	slices.Sort(names)
	var entries []Entry
	for _, name := range names {
		f, ok := files[name]
		switch {
		case !ok:
			f = File{Type: tar.TypeDir, Mode: 0o755}
		case f.Mode == 0:
			f.Mode = 0o644
		}
		entries = append(entries, Entry{Name: name, File: f})
	}
	return Gzip(Tar(tb, entries...))
}

// Image is an image to be made. The zero value has no layer and no command.
type Image struct {
	Names    []string            // references
	Platform ocispec.Platform    // the zero value is Linux on the test's architecture
	Config   ocispec.ImageConfig // what a container runs
	Layers   []Layer             // lowest first

	ConfigJSON []byte // replaces the whole configuration where it is not nil
}

// ConfigBlob returns the configuration.
func (img Image) ConfigBlob(tb testing.TB) []byte {
	tb.Helper()
	if img.ConfigJSON != nil {
		return img.ConfigJSON
	}
	created := time.Unix(1_700_000_000, 0).UTC()
	cfg := ocispec.Image{Created: &created, Platform: img.Platform, Config: img.Config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	if cfg.OS == "" {
		cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	}
	for _, l := range img.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID())
	}
	return marshal(tb, cfg)
}

// ID returns the ID the image will have in a store.
func (img Image) ID(tb testing.TB) digest.Digest { return digest.FromBytes(img.ConfigBlob(tb)) }

// Manifest returns the OCI manifest.
func (img Image) Manifest(tb testing.TB) []byte {
	tb.Helper()
	config := img.ConfigBlob(tb)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: descriptor(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{},
	}
	for _, l := range img.Layers {
		m.Layers = append(m.Layers, descriptor(l.MediaType, l.Blob))
	}
	return marshal(tb, m)
}

// Blobs returns everything of the image by digest.
func (img Image) Blobs(tb testing.TB) map[digest.Digest][]byte {
	tb.Helper()
	out := map[digest.Digest][]byte{}
	for _, b := range [][]byte{img.ConfigBlob(tb), img.Manifest(tb)} {
		out[digest.FromBytes(b)] = b
	}
	for _, l := range img.Layers {
		out[digest.FromBytes(l.Blob)] = l.Blob
	}
	return out
}

// Index returns an index of images, each with its platform.
func Index(tb testing.TB, images ...Image) []byte {
	tb.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range images {
		d := descriptor(ocispec.MediaTypeImageManifest, img.Manifest(tb))
		p := img.Platform
		if p.OS == "" {
			p = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
		}
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
	}
	return marshal(tb, index)
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// layout returns the files of an OCI layout.
func layout(tb testing.TB, images []Image) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range images {
		for d, b := range img.Blobs(tb) {
			files["blobs/sha256/"+d.Encoded()] = b
		}
		d := descriptor(ocispec.MediaTypeImageManifest, img.Manifest(tb))
		if len(img.Names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, name := range img.Names {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
			index.Manifests = append(index.Manifests, d)
		}
	}
	files["index.json"] = marshal(tb, index)
	return files
}

// WriteLayout writes the images as an OCI layout into dir.
func WriteLayout(tb testing.TB, dir string, images ...Image) {
	tb.Helper()
	for name, data := range layout(tb, images) {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			tb.Fatal(err)
		}
	}
}

// OCIArchive returns the images as an OCI archive.
func OCIArchive(tb testing.TB, images ...Image) []byte {
	tb.Helper()
	return archive(tb, layout(tb, images))
}

// DockerArchive returns the images as "docker save" wrote them before version 25.
func DockerArchive(tb testing.TB, images ...Image) []byte {
	tb.Helper()
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	files := map[string][]byte{}
	var list []entry
	for _, img := range images {
		config := img.ConfigBlob(tb)
		e := entry{Config: digest.FromBytes(config).Encoded() + ".json", RepoTags: img.Names}
		files[e.Config] = config
		for _, l := range img.Layers {
			name := l.DiffID().Encoded() + "/layer.tar"
			files[name] = l.Tar
			e.Layers = append(e.Layers, name)
		}
		list = append(list, e)
	}
	files["manifest.json"] = marshal(tb, list)
	return archive(tb, files)
}

func archive(tb testing.TB, files map[string][]byte) []byte {
	tb.Helper()
	var entries []Entry
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		entries = append(entries, Entry{Name: name, File: File{Mode: 0o644, Data: files[name]}})
	}
	return Tar(tb, entries...)
}

// Busybox returns an image with the host's static busybox and links for its applets, or an error that wraps
// ErrUnavailable where the host has none. It is named "busybox:test" and runs /bin/sh.
func Busybox(tb testing.TB) (Image, error) {
	tb.Helper()
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Image{}, err
		}
		return busybox(tb, data), nil
	}
	return Image{}, fmt.Errorf("busybox: %w: install busybox-static", errs.ErrUnavailable)
}

func busybox(tb testing.TB, data []byte) Image {
	files := map[string]File{
		"bin/busybox": {Mode: 0o755, Data: data},
		"etc/passwd":  {Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")},
		"etc/group":   {Data: []byte("root:x:0:\nuser:x:1000:\n")},
		"root":        {Type: tar.TypeDir, Mode: 0o700},
		"home/user":   {Type: tar.TypeDir, Mode: 0o755, Uid: 1000, Gid: 1000},
		"tmp":         {Type: tar.TypeDir, Mode: 0o1777},
	}
	for _, dir := range []string{"dev", "proc", "sys"} {
		files[dir] = File{Type: tar.TypeDir, Mode: 0o755}
	}
	for applet := range strings.FieldsSeq(applets) {
		files["bin/"+applet] = File{Type: tar.TypeSymlink, Mode: 0o777, Link: "busybox"}
	}
	return Image{
		Names:  []string{"busybox:test"},
		Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}},
		Layers: []Layer{Files(tb, files)},
	}
}

const applets = `sh ash cat echo ls true false sleep id hostname uname env pwd ps kill mount umount mkdir rm rmdir cp mv ln
	chmod chown touch head tail wc grep sed awk sort uniq tr cut date dd df du find xargs test stat readlink sync yes
	seq printf printenv tee nc wget ip ifconfig ping free dmesg md5sum sha256sum stty tty which whoami vi tar gzip`
