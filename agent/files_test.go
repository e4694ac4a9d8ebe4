package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// fileServer serves the methods of files from functions.
func fileServer(t *testing.T, register func(*api.Mux)) *agent.Client {
	var m api.Mux
	api.Handle(&m, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
		return api.PingReply{Version: api.Version}, nil
	})
	register(&m)
	return agent.New(func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); m.ServeConn(context.Background(), guest) }()
		t.Cleanup(func() { host.Close(); <-done })
		return host, nil
	})
}

func TestDiffAsksForAllParts(t *testing.T) {
	const parts = 3
	c := fileServer(t, func(m *api.Mux) {
		api.Handle(m, api.Diff, func(_ context.Context, req api.DiffRequest) (api.DiffReply, error) {
			n := len(req.After)
			return api.DiffReply{Changes: []api.Change{{Path: strings.Repeat("x", n+1)}}, More: n+1 < parts}, nil
		})
	})
	rep, err := c.Diff(context.Background(), api.DiffRequest{ID: "c"})
	require.NoError(t, err)
	require.Len(t, rep.Changes, parts)
	require.False(t, rep.More)
}

func TestDiffIsBounded(t *testing.T) {
	c := fileServer(t, func(m *api.Mux) {
		api.Handle(m, api.Diff, func(_ context.Context, req api.DiffRequest) (api.DiffReply, error) {
			rep := api.DiffReply{More: true}
			for i := range 9000 {
				rep.Changes = append(rep.Changes, api.Change{Path: fmt.Sprint(req.After, i)[:1]})
			}
			return rep, nil
		})
	})
	rep, err := c.Diff(context.Background(), api.DiffRequest{ID: "c"})
	require.NoError(t, err)
	require.Len(t, rep.Changes, 100_000)
	require.True(t, rep.More)
}

func TestCopyFromEnds(t *testing.T) {
	broken := fmt.Errorf("%w: the file went away", errs.ErrNotFound)
	c := fileServer(t, func(m *api.Mux) {
		api.HandleStream(m, api.CopyFrom, func(ctx context.Context, req api.CopyFromRequest, s *api.Stream, accept func() error) error {
			if err := accept(); err != nil {
				return err
			}
			if err := s.Send(api.FrameStdout, []byte("data")); err != nil {
				return err
			}
			switch req.Path {
			case "whole":
				return s.SendJSON(api.FrameExit, api.Exit{})
			case "broken":
				return broken
			case "waits":
				<-s.CloseRead(ctx).Done()
			}
			return nil // cut off
		})
	})
	for path, want := range map[string]error{"whole": nil, "broken": errs.ErrNotFound, "cut": errs.ErrUnavailable} {
		r, err := c.CopyFrom(context.Background(), api.CopyFromRequest{Path: path})
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.Equal(t, "data", string(b))
		if want == nil {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, want, path)
		}
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, err := c.CopyFrom(ctx, api.CopyFromRequest{Path: "waits"})
	require.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 4))
	require.NoError(t, err)
	cancel()
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, context.Canceled)
	r, err = c.CopyFrom(context.Background(), api.CopyFromRequest{Path: "waits"})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, errs.ErrClosed)
}

func TestCopyToEnds(t *testing.T) {
	c := fileServer(t, func(m *api.Mux) {
		api.HandleStream(m, api.CopyTo, func(_ context.Context, req api.CopyToRequest, s *api.Stream, accept func() error) error {
			if err := accept(); err != nil || req.Path == "refused" {
				return errors.Join(err, errs.ErrInvalid)
			}
			for {
				kind, b, err := s.Recv()
				if err != nil || kind != api.FrameStdin {
					return errors.Join(err, errs.ErrCorrupt)
				}
				if len(b) == 0 {
					return s.SendJSON(api.FrameExit, api.Exit{})
				}
			}
		})
	})
	ctx := context.Background()
	require.NoError(t, c.CopyTo(ctx, api.CopyToRequest{}, strings.NewReader(strings.Repeat("x", 1<<20))))
	require.NoError(t, c.CopyTo(ctx, api.CopyToRequest{}, iotest.DataErrReader(strings.NewReader("x"))))
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	require.ErrorIs(t, c.CopyTo(ctx, api.CopyToRequest{Path: "refused"}, endless), errs.ErrInvalid)
	mine := errors.New("mine")
	require.ErrorIs(t, c.CopyTo(ctx, api.CopyToRequest{}, iotest.ErrReader(mine)), mine)
	short, cancel := context.WithCancel(ctx)
	n := 0
	err := c.CopyTo(short, api.CopyToRequest{}, readerFunc(func(p []byte) (int, error) {
		if n++; n == 3 {
			cancel()
		}
		return len(p), nil
	}))
	require.ErrorIs(t, err, context.Canceled)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
