package agent

import (
	"context"
	"io"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// VolumeStat tells the size of a volume. One of which there is no data yet is empty.
func (c *Client) VolumeStat(ctx context.Context, req api.VolumeStatRequest) (api.VolumeStatReply, error) {
	return call(ctx, c, api.VolumeStat, req)
}

// VolumeRemove removes the data of a volume. A second call does nothing.
func (c *Client) VolumeRemove(ctx context.Context, req api.VolumeRemoveRequest) error {
	_, err := call(ctx, c, api.VolumeRemove, req)
	return err
}

// VolumeExport reads a volume as a tar archive. ctx bounds the whole stream; closing the reader early ends it.
func (c *Client) VolumeExport(ctx context.Context, req api.VolumeExportRequest) (io.ReadCloser, error) {
	return download(ctx, c, api.VolumeExport, req)
}

// Share mounts a file system, whose messages the stream carries. ctx bounds the opening only; closing the stream ends the
// file system. An id that is taken is ErrExists, a guest without FUSE ErrUnsupported.
func (c *Client) Share(ctx context.Context, req api.ShareRequest) (*api.Stream, error) {
	return open(ctx, c, api.Share, req)
}

// VolumeImport unpacks the archive that r yields into a volume, as CopyTo does into a container.
func (c *Client) VolumeImport(ctx context.Context, req api.VolumeImportRequest, r io.Reader) error {
	return send(ctx, c, api.VolumeImport, req, r)
}
