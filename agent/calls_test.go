package agent_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// serve returns a client of an agent that has only the methods that register adds.
func serve(t *testing.T, register func(*api.Mux)) *agent.Client {
	var mux api.Mux
	api.Handle(&mux, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
		return api.PingReply{Version: api.Version}, nil
	})
	register(&mux)
	return agent.New(func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		go mux.ServeConn(context.Background(), guest)
		return host, nil
	})
}

func TestLogsEndInOneWay(t *testing.T) {
	rec := api.LogRecord{At: time.Unix(1, 2).UTC(), Stderr: true, Line: []byte("a line\n")}
	for name, tt := range map[string]struct {
		last func(*api.Stream) error
		want error
	}{
		"the end":        {func(s *api.Stream) error { return s.SendJSON(api.FrameExit, api.Exit{}) }, io.EOF},
		"an error":       {func(*api.Stream) error { return errs.ErrCorrupt }, errs.ErrCorrupt},
		"a lost machine": {func(*api.Stream) error { return nil }, errs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(m *api.Mux) {
				api.HandleStream(m, api.Logs, func(_ context.Context, _ api.LogsRequest, s *api.Stream, accept func() error) error {
					if err := accept(); err != nil {
						return err
					}
					if err := s.SendJSON(api.FrameLog, rec); err != nil {
						return err
					}
					return tt.last(s)
				})
			})
			l, err := c.Logs(t.Context(), api.LogsRequest{ID: "c"})
			require.NoError(t, err)
			got, err := l.Next()
			require.NoError(t, err)
			require.Equal(t, rec, got)
			for range 2 {
				_, err = l.Next()
				require.ErrorIs(t, err, tt.want)
			}
			require.NoError(t, l.Close())
			require.NoError(t, l.Close())
		})
	}
}

func TestHostileLogRecordsAreErrors(t *testing.T) {
	for name, send := range map[string]func(*api.Stream) error{
		"wrong frame": func(s *api.Stream) error { return s.Send(api.FrameStdout, []byte("x")) },
		"no JSON":     func(s *api.Stream) error { return s.Send(api.FrameLog, []byte("{")) },
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(m *api.Mux) {
				api.HandleStream(m, api.Logs, func(_ context.Context, _ api.LogsRequest, s *api.Stream, accept func() error) error {
					if err := accept(); err != nil {
						return err
					}
					return send(s)
				})
			})
			l, err := c.Logs(t.Context(), api.LogsRequest{ID: "c"})
			require.NoError(t, err)
			defer l.Close()
			_, err = l.Next()
			require.Error(t, err)
			require.NotErrorIs(t, err, io.EOF)
		})
	}
}
