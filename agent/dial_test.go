package agent_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// dialled returns both ends of a connection into a container.
func dialled(t *testing.T, c *agent.Client, id string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err = c.DialContainer(t.Context(), api.DialRequest{ID: id, Network: "tcp", Address: l.Addr().String()})
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	return near, far
}

func sleeping(t *testing.T, c *agent.Client, id string) {
	t.Helper()
	p := run(t, c, request(id, "sleep"), nil, nil)
	t.Cleanup(func() {
		require.NoError(t, c.Remove(context.Background(), api.RemoveRequest{ID: id, Force: true}))
		require.NoError(t, p.Close())
	})
}

func TestDialledConnIsAConn(t *testing.T) {
	c, _ := newClient(t)
	sleeping(t, c, "c")
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		near, far := dialled(t, c, "c")
		return near, far, func() { near.Close(); far.Close() }, nil
	})
}

func TestDialledConnClosesByHalves(t *testing.T) {
	c, _ := newClient(t)
	sleeping(t, c, "c")
	near, far := dialled(t, c, "c")
	defer near.Close()
	defer far.Close()
	for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
		_, err := io.WriteString(ends[0], "the end")
		require.NoError(t, err)
		require.NoError(t, ends[0].(interface{ CloseWrite() error }).CloseWrite())
		b, err := io.ReadAll(ends[1])
		require.NoError(t, err)
		require.Equal(t, "the end", string(b))
	}
	_, err := near.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	require.Equal(t, "tcp", near.RemoteAddr().Network())
	require.Equal(t, "tcp", near.LocalAddr().Network())
}

func TestCloseReachesTheContainer(t *testing.T) {
	c, _ := newClient(t)
	sleeping(t, c, "c")
	near, far := dialled(t, c, "c")
	require.NoError(t, near.Close())
	_, err := far.Read(make([]byte, 1))
	require.Error(t, err)
	far.Close()

	near, far = dialled(t, c, "c")
	defer near.Close()
	require.NoError(t, far.(*net.TCPConn).SetLinger(0))
	far.Close()
	_, err = near.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a reset is not an end")
}

func TestDialErrors(t *testing.T) {
	c, _ := newClient(t)
	sleeping(t, c, "c")
	require.NoError(t, c.Create(t.Context(), request("created", "true")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	l.Close()
	for name, tt := range map[string]struct {
		req  api.DialRequest
		want error
	}{
		"no container": {api.DialRequest{ID: "x", Network: "tcp", Address: "127.0.0.1:1"}, errs.ErrNotFound},
		"not running":  {api.DialRequest{ID: "created", Network: "tcp", Address: "127.0.0.1:1"}, errs.ErrConflict},
		"network":      {api.DialRequest{ID: "c", Network: "unix", Address: "127.0.0.1:1"}, errs.ErrInvalid},
		"family":       {api.DialRequest{ID: "c", Network: "tcp6", Address: "127.0.0.1:1"}, errs.ErrInvalid},
		"name":         {api.DialRequest{ID: "c", Network: "tcp", Address: "localhost:1"}, errs.ErrInvalid},
		"port":         {api.DialRequest{ID: "c", Network: "tcp", Address: "127.0.0.1:0"}, errs.ErrInvalid},
		"long":         {api.DialRequest{ID: "c", Network: "tcp", Address: strings.Repeat("1", 1000)}, errs.ErrInvalid},
		"nobody":       {api.DialRequest{ID: "c", Network: "tcp", Address: closed}, errs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.DialContainer(t.Context(), tt.req)
			require.ErrorIs(t, err, tt.want)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.DialContainer(ctx, api.DialRequest{ID: "c", Network: "tcp", Address: closed})
	require.ErrorIs(t, err, context.Canceled)
}

func TestHostileDialFrames(t *testing.T) {
	for name, tt := range map[string]struct {
		send func(*api.Stream) error
		want error
	}{
		"wrong frame": {func(s *api.Stream) error { return s.Send(api.FrameStderr, []byte("x")) }, errs.ErrCorrupt},
		"an error":    {func(*api.Stream) error { return errors.New("x") }, errs.ErrCorrupt},
		"cut off":     {func(s *api.Stream) error { return s.Close() }, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(m *api.Mux) {
				api.HandleStream(m, api.Dial, func(_ context.Context, _ api.DialRequest, s *api.Stream, accept func() error) error {
					if err := accept(); err != nil {
						return err
					}
					return tt.send(s)
				})
			})
			conn, err := c.DialContainer(t.Context(), api.DialRequest{ID: "c", Network: "tcp", Address: "127.0.0.1:1"})
			require.NoError(t, err)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute)) // a pipe whose other end has been closed takes none
			for range 2 {
				_, err = conn.Read(make([]byte, 1))
				require.ErrorIs(t, err, tt.want)
			}
		})
	}
}
