package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// filer is a sandbox whose files are texts.
type filer struct {
	Sandbox
	got  bytes.Buffer
	open chan struct{} // closed when a copy has begun; nil is not told
}

func (f *filer) Stat(_ context.Context, path string) (api.StatReply, error) {
	if path == "/none" {
		return api.StatReply{}, errs.ErrNotFound
	}
	return api.StatReply{Name: path}, nil
}

func (f *filer) CopyFrom(ctx context.Context, path string, begin func() (io.Writer, error)) error {
	if path == "/none" {
		return errs.ErrNotFound
	}
	w, err := begin()
	if err != nil {
		return err
	}
	if path == "/endless" {
		close(f.open)
		for ctx.Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	_, err = io.WriteString(w, strings.Repeat(path, 1<<16))
	return err
}

func (f *filer) CopyTo(_ context.Context, req api.CopyToRequest, begin func() (io.Reader, error)) error {
	r, err := begin()
	if err != nil {
		return err
	}
	if req.Path == "/full" {
		return errs.ErrUnavailable
	}
	_, err = io.Copy(&f.got, r)
	return err
}

func (f *filer) Export(_ context.Context, _ bool, begin func() (io.Writer, error)) error {
	_, err := begin()
	return err
}

func (f *filer) Diff(context.Context, string) (api.DiffReply, error) { return api.DiffReply{}, nil }

// serveFiler serves an engine with one container.
func serveFiler(t *testing.T, f *filer) (api.DialFunc, *container) {
	e := &Engine{containers: make(map[string]*container)}
	c := newContainer("c")
	c.sb, c.state = f, exited
	e.containers["c"] = c
	var m api.Mux
	e.Register(&m)
	return func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); m.ServeConn(context.Background(), guest) }()
		t.Cleanup(func() { host.Close(); <-done })
		return host, nil
	}, c
}

func TestFilesAsFrames(t *testing.T) {
	f := &filer{}
	dial, _ := serveFiler(t, f)
	ctx := context.Background()
	st, err := api.Call(ctx, dial, api.Stat, api.StatRequest{ID: "c", Path: "/a"})
	require.NoError(t, err)
	require.Equal(t, "/a", st.Name)
	_, err = api.Call(ctx, dial, api.Stat, api.StatRequest{ID: "other", Path: "/a"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	_, err = api.Open(ctx, dial, api.CopyFrom, api.CopyFromRequest{ID: "c", Path: "/none"})
	require.ErrorIs(t, err, errs.ErrNotFound, "before the stream is accepted")

	s, err := api.Open(ctx, dial, api.CopyFrom, api.CopyFromRequest{ID: "c", Path: "/ab"})
	require.NoError(t, err)
	var all []byte
	for {
		kind, b, err := s.Recv()
		require.NoError(t, err)
		if kind == api.FrameExit {
			break
		}
		require.Equal(t, api.FrameStdout, kind)
		all = append(all, b...)
	}
	require.Equal(t, strings.Repeat("/ab", 1<<16), string(all))

	s, err = api.Open(ctx, dial, api.CopyTo, api.CopyToRequest{ID: "c", Path: "/"})
	require.NoError(t, err)
	for _, b := range []string{"one", "two", ""} {
		require.NoError(t, s.Send(api.FrameStdin, []byte(b)))
	}
	kind, _, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, api.FrameExit, kind)
	require.Equal(t, "onetwo", f.got.String())
}

// TestStreamThatBreaksOffIsNoEnd holds that an upload which was cut is not taken for a whole one.
func TestStreamThatBreaksOffIsNoEnd(t *testing.T) {
	for name, end := range map[string]func(*api.Stream) error{
		"closed":      func(s *api.Stream) error { return s.Close() },
		"other frame": func(s *api.Stream) error { return s.SendJSON(api.FrameSignal, json.RawMessage("1")) },
	} {
		near, far := net.Pipe()
		go func() {
			s := api.NewStream(far)
			_ = s.Send(api.FrameStdin, []byte("some"))
			_ = end(s)
		}()
		b, err := io.ReadAll(&frameReader{s: api.NewStream(near)})
		require.Equal(t, "some", string(b), name)
		require.Error(t, err, name)
		near.Close()
		far.Close()
	}
}

func TestRemovalSendsCopiesAway(t *testing.T) {
	f := &filer{open: make(chan struct{})}
	dial, c := serveFiler(t, f)
	ctx := context.Background()
	s, err := api.Open(ctx, dial, api.CopyFrom, api.CopyFromRequest{ID: "c", Path: "/endless"})
	require.NoError(t, err)
	<-f.open
	c.copies.close() // returns although nobody reads
	for err == nil {
		_, _, err = s.Recv()
	}
	require.False(t, errors.Is(err, errs.ErrInvalid))
	_, err = api.Call(ctx, dial, api.Stat, api.StatRequest{ID: "c", Path: "/a"})
	require.ErrorIs(t, err, errs.ErrNotFound)
}
