package engine

import (
	"context"
	"fmt"
	"io"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Volumes is a Backend that has volumes. The methods may be called by many goroutines; they return soon after ctx ends.
// Those that make an archive call begin once they know that they can. The ids were checked.
type Volumes interface {
	StatVolume(ctx context.Context, id string) (api.VolumeStatReply, error)
	// RemoveVolume deletes the data of a volume. What is not there is no error.
	RemoveVolume(ctx context.Context, id string) error
	ExportVolume(ctx context.Context, id string, begin func() (io.Writer, error)) error
	ImportVolume(ctx context.Context, id string, begin func() (io.Reader, error)) error
}

// registerVolumes adds the methods of volumes to m.
func (e *Engine) registerVolumes(m *api.Mux) {
	api.Handle(m, api.VolumeStat, func(ctx context.Context, req api.VolumeStatRequest) (rep api.VolumeStatReply, err error) {
		err = e.volume(ctx, "stat", req.ID, func(ctx context.Context, v Volumes) error {
			rep, err = v.StatVolume(ctx, req.ID)
			return err
		})
		return rep, err
	})
	api.Handle(m, api.VolumeRemove, func(ctx context.Context, req api.VolumeRemoveRequest) (rep api.VolumeRemoveReply, err error) {
		return rep, e.volume(ctx, "remove", req.ID, func(ctx context.Context, v Volumes) error { return v.RemoveVolume(ctx, req.ID) })
	})
	api.HandleStream(m, api.VolumeExport, func(ctx context.Context, req api.VolumeExportRequest, s *api.Stream, accept func() error) error {
		return e.volume(ctx, "export", req.ID, func(ctx context.Context, v Volumes) error {
			return sendArchive(ctx, s, accept, func(ctx context.Context, begin func() (io.Writer, error)) error {
				return v.ExportVolume(ctx, req.ID, begin)
			})
		})
	})
	api.HandleStream(m, api.VolumeImport, func(ctx context.Context, req api.VolumeImportRequest, s *api.Stream, accept func() error) error {
		return e.volume(ctx, "import", req.ID, func(ctx context.Context, v Volumes) error {
			return receiveArchive(ctx, s, func(begin func() (io.Reader, error)) error {
				return v.ImportVolume(ctx, req.ID, begin)
			}, accept)
		})
	})
}

// volume runs fn with the backend's volumes. Close sends it away, waits for it, and lets no other one begin.
func (e *Engine) volume(ctx context.Context, what, id string, fn func(context.Context, Volumes) error) error {
	if err := checkID("volume", id); err != nil {
		return err
	}
	v, ok := e.backend.(Volumes)
	if !ok {
		return fmt.Errorf("%s volume: %w", what, errs.ErrUnsupported)
	}
	ctx, end, ok := e.bulk.begin(ctx)
	if !ok {
		return fmt.Errorf("%s volume: %w: the guest is powering off", what, errs.ErrClosed)
	}
	defer end()
	if err := fn(ctx, v); err != nil {
		return fmt.Errorf("%s volume: %w", what, err)
	}
	return nil
}
