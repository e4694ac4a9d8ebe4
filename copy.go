package arcbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/container"
	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// FileInfo is a file of a container.
type FileInfo struct {
	Name    string      // the last part of the path
	Size    int64       // bytes
	Mode    fs.FileMode // type and permissions
	ModTime time.Time
	Link    string // where a symbolic link leads in the container, "" for anything else
}

func fileInfo(st api.StatReply) FileInfo {
	return FileInfo{Name: st.Name, Size: st.Size, Mode: st.Mode, ModTime: st.ModTime, Link: st.Link}
}

// StatPath tells of a file of a container, running or not. A link at the end of the path is not followed, unless a slash
// is behind it. A container that runs is seen as its processes see it, what is mounted in it included; of one that does
// not, there is its root with its volumes. The machine is started where it does not run.
//
// A path that is not there is ErrNotFound, one that no file can have ErrInvalid.
func (r *Runtime) StatPath(ctx context.Context, ref, path string) (FileInfo, error) {
	return call(ctx, r, "StatPath", ref, func(ctx context.Context) (FileInfo, error) {
		st, err := r.containers.Stat(ctx, ref, path)
		return fileInfo(st), err
	})
}

// CopyToOptions tunes CopyTo. The zero value replaces what is in the way and gives all to root.
type CopyToOptions struct {
	// NoOverwrite makes it an error, ErrConflict, that a directory would be replaced by something else, or something
	// else by a directory.
	NoOverwrite bool
	// KeepOwner gives the files the owners that the archive names, by number.
	KeepOwner bool
}

// CopyTo unpacks a tar archive, uncompressed, into a directory of a container, running or not. Directories that are there
// are kept; other files in the way are replaced. Modes, times, links, devices and the extended attributes user.* and
// security.capability are those of the archive; POSIX ACLs are left out. Nothing is written outside the container, whatever links it or the archive
// has. The machine is started where it does not run.
//
// It returns when all is written. archive is read in the caller's goroutine; a Read that blocks is not interrupted by
// ctx. After an error what came before it is there.
//
// A path that is not there is ErrNotFound, one that is no directory and a bad archive ErrInvalid, an archive that ends
// too early ErrCorrupt, a root that is read-only ErrConflict, a file that something is mounted on ErrInUse, a full disk
// ErrUnavailable.
func (r *Runtime) CopyTo(ctx context.Context, ref, path string, archive io.Reader, opts CopyToOptions) error {
	return callNone(ctx, r, "CopyTo", ref, func(ctx context.Context) error {
		return r.containers.CopyTo(ctx, ref, api.CopyToRequest{Path: path, NoOverwrite: opts.NoOverwrite, KeepOwner: opts.KeepOwner}, archive)
	})
}

// CopyFrom reads a file or a directory of a container, running or not, as a tar archive, and tells what it is. The
// archive begins with the last part of the path, a directory with all that is in it; with "/." behind the path it has
// what is in the directory, without its name. POSIX ACLs are not in it. Links are kept as they are; with a slash behind the path, one at its end is
// followed. Sockets are left out. Of the kernel's file systems, such as /proc, only the directory is there.
//
// Close the reader; closing it early ends the copy. ctx bounds the whole reading, and the machine, started where it did
// not run, runs until then. A container that goes away meanwhile is an error of Read. A file whose size changes while it
// is read is cut or filled with zeros; what vanishes is left out.
//
// A path that is not there is ErrNotFound, a socket or a file of /proc ErrUnsupported.
func (r *Runtime) CopyFrom(ctx context.Context, ref, path string) (io.ReadCloser, FileInfo, error) {
	var info FileInfo
	rc, err := r.archive(ctx, "CopyFrom", ref, func(ctx context.Context) (io.ReadCloser, error) {
		rc, st, err := r.containers.CopyFrom(ctx, ref, path)
		info = fileInfo(st)
		return rc, err
	})
	return rc, info, err
}

// ExportContainer reads the whole root of a container, running or not, as a tar archive, without what is mounted in it.
// The rest is as with CopyFrom.
func (r *Runtime) ExportContainer(ctx context.Context, ref string) (io.ReadCloser, error) {
	return r.archive(ctx, "ExportContainer", ref, func(ctx context.Context) (io.ReadCloser, error) {
		return r.containers.Export(ctx, ref, false)
	})
}

// ChangeKind says how a path differs from the image.
type ChangeKind string

// The kinds of changes.
const (
	ChangeModified ChangeKind = "modified" // of a directory: something in it has changed, or itself
	ChangeAdded    ChangeKind = "added"
	ChangeDeleted  ChangeKind = "deleted" // of a directory: with all that was in it
)

// Change is a path of a container that differs from its image.
type Change struct {
	Path string // absolute
	Kind ChangeKind
}

// DiffContainer lists what a container, running or not, has changed in its root, each directory before what is in it. Of
// more than 100,000 changes it lists the first.
func (r *Runtime) DiffContainer(ctx context.Context, ref string) ([]Change, error) {
	return call(ctx, r, "DiffContainer", ref, func(ctx context.Context) ([]Change, error) {
		rep, err := r.containers.Diff(ctx, ref)
		changes := make([]Change, len(rep.Changes))
		for i, c := range rep.Changes {
			changes[i] = Change{Path: c.Path, Kind: ChangeKind(c.Kind)}
		}
		return changes, err
	})
}

// CommitOptions tunes CommitContainer. The zero value makes an image without a name that runs as the container's does.
type CommitOptions struct {
	Names   []string // given to the image, taken from those that had them
	Author  string
	Comment string
	// Change changes the configuration of the image that the container was made from. It must return soon. nil is none.
	Change func(*ocispec.ImageConfig)
	// NoPause lets the container run on meanwhile: files may then be cut in the middle of a change.
	NoPause bool
}

// CommitContainer makes an image of a container, running or not: its image, and what it has changed in its root as one
// more layer. What is mounted in it is no part. A running container is paused meanwhile, unless NoPause is set.
//
// A name that is malformed is ErrInvalid. A file whose name begins with ".wh.", which means a deletion in a layer, is
// ErrUnsupported. After an error there is no new image.
func (r *Runtime) CommitContainer(ctx context.Context, ref string, opts CommitOptions) (ImageInfo, error) {
	return call(ctx, r, "CommitContainer", ref, func(ctx context.Context) (ImageInfo, error) {
		img, err := r.commit(ctx, ref, opts)
		if err != nil {
			return ImageInfo{}, err
		}
		r.publishImage(event.ImageCommitted, img, "")
		return imageInfo(img), nil
	})
}

// resumeTimeout bounds the resuming of a container that a commit has paused, whatever has become of the caller.
const resumeTimeout = 10 * time.Second

func (r *Runtime) commit(ctx context.Context, ref string, opts CommitOptions) (_ image.Image, err error) {
	info, err := r.containers.Inspect(ref)
	if err != nil {
		return image.Image{}, err
	}
	base, err := r.images.Get(ctx, info.ImageID)
	if err != nil {
		return image.Image{}, err
	}
	if info.State == container.StateRunning && !opts.NoPause {
		switch err := r.containers.Pause(ctx, info.ID); {
		case err == nil:
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
				defer cancel()
				// One that has exited, or was resumed or removed by somebody else, needs nothing.
				if rerr := r.containers.Resume(ctx, info.ID); rerr != nil && !errors.Is(rerr, ErrConflict) && !errors.Is(rerr, ErrNotFound) {
					err = errors.Join(err, rerr)
				}
			}()
		case !errors.Is(err, ErrConflict): // that one has exited meanwhile, or is paused already
			return image.Image{}, err
		}
	}
	layer, err := r.containers.Export(ctx, info.ID, true)
	if err != nil {
		return image.Image{}, err
	}
	defer layer.Close()
	return r.images.Commit(ctx, base, layer, image.CommitOptions{
		Names: opts.Names, Author: opts.Author, Comment: opts.Comment, Change: opts.Change,
		CreatedBy: strings.Join(info.Args, " "),
	})
}

// archive opens a reader that outlives the call. It ends with ctx, with Close of the Runtime, and when it is closed.
func (r *Runtime) archive(ctx context.Context, op, ref string, open func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
	return call(ctx, r, op, ref, func(context.Context) (io.ReadCloser, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		stop := context.AfterFunc(r.ctx, func() { cancel(ErrClosed) })
		end := sync.OnceFunc(func() {
			stop()
			cancel(nil)
		})
		rc, err := open(ctx)
		if err != nil {
			end()
			return nil, err
		}
		return &archiveReader{rc: rc, ctx: ctx, end: end, op: op, ref: ref}, nil
	})
}

// archiveReader gives the errors of an archive as users see them.
type archiveReader struct {
	rc      io.ReadCloser
	ctx     context.Context
	end     func()
	op, ref string
}

// Read reads the archive.
func (a *archiveReader) Read(p []byte) (int, error) {
	n, err := a.rc.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	if errors.Is(context.Cause(a.ctx), ErrClosed) {
		err = ErrClosed
	}
	return n, opError(a.op, a.ref, err)
}

// Close ends the reading. It may be called again.
func (a *archiveReader) Close() error {
	defer a.end()
	return opError(a.op, a.ref, a.rc.Close())
}
