package container

import (
	"context"
	"io"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// FileAgent is what the manager asks of the guest about files.
type FileAgent interface {
	Stat(context.Context, api.StatRequest) (api.StatReply, error)
	CopyFrom(context.Context, api.CopyFromRequest) (io.ReadCloser, error)
	CopyTo(context.Context, api.CopyToRequest, io.Reader) error
	Export(context.Context, api.ExportRequest) (io.ReadCloser, error)
	Diff(context.Context, api.DiffRequest) (api.DiffReply, error)
}

// Stat tells of a file of a container.
func (m *Manager) Stat(ctx context.Context, ref, path string) (rep api.StatReply, err error) {
	err = m.Reach(ctx, ref, func(a Agent, id string) error {
		rep, err = a.Stat(ctx, api.StatRequest{ID: id, Path: path})
		return err
	})
	return rep, err
}

// Diff lists what a container changed in its root.
func (m *Manager) Diff(ctx context.Context, ref string) (rep api.DiffReply, err error) {
	err = m.Reach(ctx, ref, func(a Agent, id string) error {
		rep, err = a.Diff(ctx, api.DiffRequest{ID: id})
		return err
	})
	return rep, err
}

// CopyTo unpacks an archive into a directory of a container.
func (m *Manager) CopyTo(ctx context.Context, ref string, req api.CopyToRequest, r io.Reader) error {
	return m.Reach(ctx, ref, func(a Agent, id string) error {
		req.ID = id
		return a.CopyTo(ctx, req, r)
	})
}

// CopyFrom reads a file or directory of a container as an archive, and tells what it is. ctx bounds the reading, until
// which the machine is held; close the reader.
func (m *Manager) CopyFrom(ctx context.Context, ref, path string) (r io.ReadCloser, st api.StatReply, err error) {
	r, err = m.stream(ctx, ref, func(a Agent, id string) (io.ReadCloser, error) {
		if st, err = a.Stat(ctx, api.StatRequest{ID: id, Path: path}); err != nil {
			return nil, err
		}
		return a.CopyFrom(ctx, api.CopyFromRequest{ID: id, Path: path})
	})
	return r, st, err
}

// Export reads the whole root of a container as an archive, or what it changed as a layer. ctx bounds the reading, until
// which the machine is held; close the reader.
func (m *Manager) Export(ctx context.Context, ref string, layer bool) (io.ReadCloser, error) {
	return m.stream(ctx, ref, func(a Agent, id string) (io.ReadCloser, error) {
		return a.Export(ctx, api.ExportRequest{ID: id, Layer: layer})
	})
}

// stream opens a reader that holds the machine until it is closed.
func (m *Manager) stream(ctx context.Context, ref string, open func(Agent, string) (io.ReadCloser, error)) (io.ReadCloser, error) {
	a, id, release, err := m.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, err := open(a, id)
	if err != nil {
		release()
		return nil, err
	}
	return &heldReader{ReadCloser: r, release: sync.OnceFunc(release)}, nil
}

type heldReader struct {
	io.ReadCloser
	release func()
}

// Close closes the reader and lets go of the machine. It may be called again.
func (r *heldReader) Close() error {
	defer r.release()
	return r.ReadCloser.Close()
}
