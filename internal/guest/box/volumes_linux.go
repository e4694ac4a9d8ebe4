package box

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
	"github.com/arcboxlabs/arcbox-go/internal/guest/files"
)

var _ engine.Volumes = (*Box)(nil)

// StatVolume implements engine.Volumes.
func (b *Box) StatVolume(ctx context.Context, id string) (api.VolumeStatReply, error) {
	v, err := b.findVolume(ctx, id)
	if err != nil {
		return api.VolumeStatReply{}, err
	}
	dir, err := v.open()
	if errors.Is(err, os.ErrNotExist) {
		return api.VolumeStatReply{}, nil
	}
	if err != nil {
		return api.VolumeStatReply{}, err
	}
	defer unix.Close(dir)
	u, err := files.Measure(ctx, dir)
	return api.VolumeStatReply(u), err
}

// RemoveVolume implements engine.Volumes.
func (b *Box) RemoveVolume(ctx context.Context, id string) error {
	v, err := b.findVolume(ctx, id)
	if err != nil {
		return err
	}
	return v.remove()
}

// ExportVolume implements engine.Volumes.
func (b *Box) ExportVolume(ctx context.Context, id string, begin func() (io.Writer, error)) error {
	v, err := b.volume(ctx, id)
	if err != nil {
		return err
	}
	dir, err := v.open()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	src, err := files.OpenWhole(dir)
	if err != nil {
		return err
	}
	return writeFrom(ctx, src, begin)
}

// ImportVolume implements engine.Volumes.
func (b *Box) ImportVolume(ctx context.Context, id string, begin func() (io.Reader, error)) error {
	v, err := b.volume(ctx, id)
	if err != nil {
		return err
	}
	dir, err := v.open()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	t, err := files.OpenTarget(dir, "/")
	if err != nil {
		return err
	}
	defer t.Close()
	r, err := begin()
	if err != nil {
		return err
	}
	return t.Unpack(ctx, r, files.Options{KeepOwner: true})
}
