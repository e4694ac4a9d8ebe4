package socket_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/socket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a guest, and a set of its sockets.
func rig(t *testing.T) (*agenttest.Agent, *socket.Set) {
	t.Helper()
	a := agenttest.New(nil)
	t.Cleanup(a.Close)
	s := socket.NewSet(agent.New(a.Dial), nil)
	t.Cleanup(s.Close)
	return a, s
}

// host is a socket of the host whose connections the test takes.
func host(t *testing.T) (net.Listener, socket.Dial) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	}
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c.(*net.UnixConn)
}

func accepted(t *testing.T, l net.Listener) *net.UnixConn {
	t.Helper()
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c.(*net.UnixConn)
}

func TestManyConnections(t *testing.T) {
	a, s := rig(t)
	l, d := host(t)
	id, release, err := s.Add(t.Context(), d)
	require.NoError(t, err)
	defer release()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	for i := range 100 {
		c := dial(t, a.Socket(id))
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte(i)}, 1000*i)
			go func() { // ends with the connection
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(data, got) {
				t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
}

// TestEnds ends a connection from either side, by one direction and altogether.
func TestEnds(t *testing.T) {
	a, s := rig(t)
	l, d := host(t)
	id, release, err := s.Add(t.Context(), d)
	require.NoError(t, err)
	defer release()
	for _, fromGuest := range []bool{true, false} {
		near, far := dial(t, a.Socket(id)), accepted(t, l)
		if !fromGuest {
			near, far = far, near
		}
		_, err = near.Write([]byte("the end"))
		require.NoError(t, err)
		require.NoError(t, near.CloseWrite())
		got, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "the end", string(got))
		_, err = far.Write([]byte("the answer")) // the other direction goes on
		require.NoError(t, err)
		buf := make([]byte, 10)
		_, err = io.ReadFull(near, buf)
		require.NoError(t, err)
		require.Equal(t, "the answer", string(buf))
		near.Close()
	}
}

// TestRelease ends sockets while connections are open, by a release, by the end of the set, and by that of the guest.
func TestRelease(t *testing.T) {
	for name, end := range map[string]func(a *agenttest.Agent, s *socket.Set, release func()){
		"release": func(_ *agenttest.Agent, _ *socket.Set, release func()) { release() },
		"close":   func(_ *agenttest.Agent, s *socket.Set, _ func()) { s.Close() },
		"crash":   func(a *agenttest.Agent, _ *socket.Set, _ func()) { a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, s := rig(t)
			l, d := host(t)
			id, release, err := s.Add(t.Context(), d)
			require.NoError(t, err)
			path := a.Socket(id)
			near, far := dial(t, path), accepted(t, l)
			end(a, s, release)
			for _, c := range []net.Conn{near, far} {
				_, err = c.Read(make([]byte, 1))
				require.Error(t, err)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			}
			release()
			s.Close()
			if c, err := net.Dial("unix", path); err == nil { // the guest has not learnt it yet
				require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
				_, err = c.Read(make([]byte, 1))
				require.Error(t, err)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
				c.Close()
			}
			_, _, err = s.Add(t.Context(), d)
			require.ErrorIs(t, err, errs.ErrClosed)
		})
	}
}

func TestDialThatFails(t *testing.T) {
	a, s := rig(t)
	for name, d := range map[string]socket.Dial{
		"error":  func(context.Context) (net.Conn, error) { return nil, errors.New("no") },
		"no one": func(context.Context) (net.Conn, error) { return nil, nil },
	} {
		id, release, err := s.Add(t.Context(), d)
		require.NoError(t, err)
		_, err = dial(t, a.Socket(id)).Read(make([]byte, 1))
		require.Equal(t, io.EOF, err, name)
		release()
	}
	// One that never answers is waited for as long as its socket is there, and others are served meanwhile.
	id, release, err := s.Add(t.Context(), func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() })
	require.NoError(t, err)
	c := dial(t, a.Socket(id))
	release()
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestAgentRefuses(t *testing.T) {
	_, s := rig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := s.Add(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	a, _ := rig(t)
	c := agent.New(a.Dial)
	_, err = c.Accept(t.Context(), api.AcceptRequest{ID: "none"})
	require.ErrorIs(t, err, errs.ErrNotFound)
	l, err := c.Listen(t.Context(), api.ListenRequest{ID: "s"})
	require.NoError(t, err)
	_, err = c.Listen(t.Context(), api.ListenRequest{ID: "s"})
	require.ErrorIs(t, err, errs.ErrExists)
	_, err = c.Listen(t.Context(), api.ListenRequest{ID: "../s"})
	require.ErrorIs(t, err, errs.ErrInvalid)
	wait := make(chan error, 1)
	go func() { _, err := c.Accept(t.Context(), api.AcceptRequest{ID: "s"}); wait <- err }()
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = c.Accept(ctx, api.AcceptRequest{ID: "s"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-wait, errs.ErrNotFound)
}

func TestPublish(t *testing.T) {
	l, d := host(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "s")
	for range 2 { // the second finds what a crash has left
		p, err := socket.Publish(path, d, nil)
		require.NoError(t, err)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
		_, err = socket.Publish(path, d, nil)
		require.ErrorIs(t, err, errs.ErrConflict)
		for c, err := l.Accept(); err == nil; c, err = l.Accept() { // of the question whether somebody listens
			c.Close()
			break
		}
		near, far := dial(t, path), accepted(t, l)
		_, err = near.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, near.CloseWrite())
		got, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "x", string(got))
		p.Close()
		p.Stop()
		_, err = near.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoFileExists(t, path)
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		require.NoError(t, err)
		stale.SetUnlinkOnClose(false)
		stale.Close()
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	_, err := socket.Publish(filepath.Join(dir, "file"), d, nil)
	require.ErrorIs(t, err, errs.ErrConflict)
	_, err = socket.Publish(filepath.Join(dir, "file", "s"), d, nil)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	for _, bad := range []string{"", "s", "/" + strings.Repeat("x", 103), "/" + strings.Repeat("d", 90) + "/s", "/a/../s", "/a\x00"} {
		_, err := socket.Publish(bad, d, nil)
		require.ErrorIs(t, err, errs.ErrInvalid, bad)
	}
}

// FuzzGuest lets a hostile guest answer what the host asks of it.
func FuzzGuest(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x02{}\x05\x00\x00\x00\x01x\x05\x00\x00\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x02{}\x05\xff\xff\xff\xff"))
	f.Add([]byte("\x03\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := agent.New(func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { // ends with the connection
				defer far.Close()
				go func() { _, _ = io.Copy(io.Discard, far) }()
				_, _ = far.Write(answer)
			}()
			return near, nil
		})
		conn, err := c.Accept(t.Context(), api.AcceptRequest{ID: "s"})
		if err != nil {
			return
		}
		defer conn.Close()
		n, err := io.Copy(io.Discard, conn)
		if n > int64(len(answer)) || err == nil && !bytes.Contains(answer, []byte{byte(api.FrameStdout), 0, 0, 0, 0}) {
			t.Fatalf("%d bytes, %v of %q", n, err, answer)
		}
	})
}
