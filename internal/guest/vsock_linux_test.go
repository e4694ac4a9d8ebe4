package guest

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/mux"
)

// TestSessionsOverAConnection is the host's side of a connection to mux.VsockPort: sessions, streams to one port, and an
// end when the host goes.
func TestSessionsOverAConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveSessions(t.Context(), theirs, func(_ context.Context, c net.Conn) {
			defer c.Close()
			io.Copy(c, c)
		})
	}()
	s, err := mux.Connect(t.Context(), ours)
	require.NoError(t, err)
	c, err := s.Dial(t.Context(), api.Port)
	require.NoError(t, err)
	_, err = io.WriteString(c, "hello")
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	other, err := s.Dial(t.Context(), api.Port+7)
	require.NoError(t, err)
	_, err = other.Read(b)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.NoError(t, s.Close())
	<-served
}
