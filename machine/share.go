package machine

import (
	"context"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/share"
)

// Share makes a directory of the host, or a file system, available in the guest and returns the id by which a container
// mounts it. release gives it back; a second call does nothing. What cannot be shared is ErrInvalid.
func (m *Machine) Share(ctx context.Context, src share.Source) (id string, release func(), err error) {
	return m.shares.Add(ctx, src)
}

// openShare opens the stream of a share.
func (m *Machine) openShare(ctx context.Context, req api.ShareRequest) (share.Stream, error) {
	s, err := m.agent.Share(ctx, req)
	if err != nil {
		return nil, err
	}
	return s, nil
}
