package arcbox

import (
	"archive/tar"
	"context"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// ImageSpec says what image BuildImage makes. The same spec makes the same image, digest for digest, on any system and at
// any time.
type ImageSpec struct {
	Names []string // given to the image, taken from those that had them
	// Base is the image that the new one extends, by name or id. "" is none: the image has its layers and nothing else.
	Base string
	// Layers come on top of Base, the lowest first. None makes an image that differs from Base in its configuration.
	Layers []ImageLayer
	// Config is how containers of the image run. What it sets takes the place of what Base has, but Env, Labels,
	// ExposedPorts and Volumes are added to it, and an Entrypoint without Cmd drops the Cmd of Base, which was for
	// another program.
	Config  ocispec.ImageConfig
	Author  string
	Comment string // in the image's history
	// Created is the time that the image says it was made. The zero value says none, so that it is always the same.
	Created time.Time
}

// ImageLayer is where the files of a layer come from: exactly one of FS, Files and Tar is set.
type ImageLayer struct {
	// FS is a tree of directories, regular files and symbolic links, such as an embed.FS, an os.DirFS or a part of one
	// by fs.Sub. Modes and times of the host are not taken over, since they differ from host to host: directories are
	// 0755, files 0755 where their content begins as that of a program ("#!" or an ELF binary) and 0644 otherwise.
	FS fs.FS
	// Files is the same by path: "/app" or "etc/app.conf".
	Files map[string]ImageFile
	// Tar is a tar archive, compressed with gzip or zstd or not, that becomes the layer as it is. A file ".wh.name" in it
	// deletes what the layers below have. It is read to its end in the caller's goroutine.
	Tar io.Reader

	// Dir is the directory of the image into which FS and Files go. "" is the root.
	Dir string
	// ModTime is the time of all files that have none of their own. Zero is 1970-01-01.
	ModTime time.Time
	// UID and GID own all files that have no owner of their own. Zero is root.
	UID, GID int
	// Header changes mode, owner, times or extended attributes (PAXRecords "SCHILY.xattr.NAME") of each new file,
	// directory and link. It must not change the rest. An error ends the build. nil is none.
	Header func(*tar.Header) error
	// CreatedBy says in the image's history what made the layer.
	CreatedBy string
}

// ImageFile is one file of ImageLayer.Files. Of Data, Path and Link at most one is set; the zero value is an empty file.
type ImageFile struct {
	Data []byte // its content
	Path string // of a file on the host that has its content
	Link string // makes it a symbolic link with this target
	// Mode is its permissions, with fs.ModeSetuid, fs.ModeSetgid and fs.ModeSticky; no permissions are those that a file
	// of ImageLayer.FS gets. With fs.ModeDir it is a directory.
	Mode fs.FileMode
	// ModTime, UID and GID are those of the ImageLayer where they are zero.
	ModTime  time.Time
	UID, GID int
	Xattrs   map[string]string // extended attributes, by name as in "user.mime_type"
}

// BuildOptions tunes BuildImage. The zero value works.
type BuildOptions struct {
	Pull         PullPolicy          // of Base; the zero value pulls what is missing
	PullProgress func(LayerProgress) // as PullOptions.Progress
}

// BuildImage makes an image of Go values: no builder, no machine, no program of the host takes part. A directory that Base
// has keeps its mode and owner when files are put into it, and its symbolic links to directories are followed: a file
// "/bin/app" lands in /usr/bin where /bin is a link to that.
//
// A spec that cannot work is ErrInvalid and says why: a file that is no directory, regular file or link, one that changes
// while it is read, a path that leads out of the image, a name that is malformed, more than Config.Images allows. A Base
// that does not exist is ErrNotFound. After an error no image has changed.
func (r *Runtime) BuildImage(ctx context.Context, spec ImageSpec, opts BuildOptions) (ImageInfo, error) {
	return call(ctx, r, "BuildImage", first(spec.Names), func(ctx context.Context) (ImageInfo, error) {
		if spec.Base != "" {
			if err := r.ensureImage(ctx, spec.Base, opts.Pull, opts.PullProgress); err != nil {
				return ImageInfo{}, err
			}
		}
		img, err := r.images.Build(ctx, spec.build())
		if err != nil {
			return ImageInfo{}, err
		}
		r.publishImage(event.ImageBuilt, img, "")
		return imageInfo(img), nil
	})
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (s ImageSpec) build() image.BuildSpec {
	out := image.BuildSpec{
		Names: s.Names, Base: s.Base, Author: s.Author, Comment: s.Comment, Created: s.Created,
		Change: func(c *ocispec.ImageConfig) { mergeConfig(c, s.Config) },
	}
	for _, l := range s.Layers {
		src := image.LayerSource{
			FS: l.FS, Tar: l.Tar, Dir: l.Dir, ModTime: l.ModTime, UID: l.UID, GID: l.GID, Header: l.Header, CreatedBy: l.CreatedBy,
		}
		if l.Files != nil {
			src.Files = make(map[string]image.LayerFile, len(l.Files))
		}
		for name, f := range l.Files {
			src.Files[name] = image.LayerFile(f)
		}
		out.Layers = append(out.Layers, src)
	}
	return out
}

// mergeConfig puts a configuration over that of a base.
func mergeConfig(base *ocispec.ImageConfig, over ocispec.ImageConfig) {
	if over.Entrypoint != nil {
		base.Entrypoint, base.Cmd = over.Entrypoint, nil
	}
	if over.Cmd != nil {
		base.Cmd = over.Cmd
	}
	for _, kv := range over.Env {
		key, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(base.Env, func(has string) bool { return strings.HasPrefix(has, key+"=") })
		if i >= 0 {
			base.Env[i] = kv
		} else {
			base.Env = append(base.Env, kv)
		}
	}
	base.Labels = mergeMaps(base.Labels, over.Labels)
	base.ExposedPorts = mergeMaps(base.ExposedPorts, over.ExposedPorts)
	base.Volumes = mergeMaps(base.Volumes, over.Volumes)
	for _, f := range []struct{ to, from *string }{
		{&base.User, &over.User}, {&base.WorkingDir, &over.WorkingDir}, {&base.StopSignal, &over.StopSignal},
	} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
}

func mergeMaps[V any](base, over map[string]V) map[string]V {
	if len(over) == 0 {
		return base
	}
	out := maps.Clone(base)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, over)
	return out
}
