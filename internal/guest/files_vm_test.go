package guest_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// entries reads an archive: names in order, and contents by name.
func entries(t testing.TB, r io.ReadCloser) (names []string, body map[string]string) {
	t.Helper()
	defer r.Close()
	body = map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names, body
		}
		require.NoError(t, err)
		b, err := io.ReadAll(tr)
		require.NoError(t, err)
		names = append(names, h.Name)
		body[h.Name] = string(b)
	}
}

func archiveOf(t testing.TB, headers ...tar.Header) io.Reader {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		body := h.Uname
		if h.Uname = ""; h.Typeflag == tar.TypeReg {
			h.Size, h.Mode = int64(len(body)), 0o644
		}
		require.NoError(t, tw.WriteHeader(&h))
		_, err := io.WriteString(tw, body)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return &b
}

// startUntil starts a container and returns when it has written a word.
func (m *machine) startUntil(t testing.TB, req api.CreateRequest, word string) {
	t.Helper()
	m.create(t, req)
	r, w := io.Pipe()
	p, err := m.Attach(testContext(t), api.AttachRequest{ID: req.ID}, w, w)
	require.NoError(t, err)
	go func() { <-p.Done(); w.Close() }()
	t.Cleanup(func() { r.Close(); p.Close() })
	_, err = m.Start(testContext(t), api.StartRequest{ID: req.ID})
	require.NoError(t, err)
	b := make([]byte, len(word))
	_, err = io.ReadFull(r, b)
	require.NoError(t, err)
	require.Equal(t, word, string(b))
	go func() { _, _ = io.Copy(io.Discard, r) }()
}

// TestFilesOfContainer reads, writes and compares the files of a container that runs, and of the same when it has ended.
func TestFilesOfContainer(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", `mkdir -p /data/sub && echo hello > /data/sub/f && busybox ln /data/sub/f /data/g &&
		rm /sbin/tool && rm -r /secret && mkdir -m 700 /secret && echo new > /secret/new && echo x >> /etc/passwd &&
		busybox ln -s /data/sub /link && echo ram > /dev/shm/ram && echo ready; exec sleep 1000`}, layers("base", "users"))
	m.startUntil(t, req, "ready\n")
	check := func(running bool) {
		st, err := m.Stat(ctx, api.StatRequest{ID: req.ID, Path: "/link"})
		require.NoError(t, err)
		require.Equal(t, "/data/sub", st.Link)
		r, err := m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/link/"})
		require.NoError(t, err)
		_, body := entries(t, r)
		require.Equal(t, "hello\n", body["link/f"])
		_, err = m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/none"})
		require.ErrorIs(t, err, errs.ErrNotFound)
		_, err = m.Stat(ctx, api.StatRequest{ID: req.ID, Path: "/dev/shm/ram"})
		require.Equal(t, running, err == nil, "what is mounted is there as long as it runs: %v", err)
		_, err = m.Stat(ctx, api.StatRequest{ID: req.ID, Path: "/proc/1/root/proc/1/root/init"})
		require.Error(t, err)

		require.NoError(t, m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/link"}, archiveOf(t,
			tar.Header{Typeflag: tar.TypeReg, Name: "in", Uname: "from the host"})))
		r, err = m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/data/sub/in"})
		require.NoError(t, err)
		_, body = entries(t, r)
		require.Equal(t, "from the host", body["in"])
		err = m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/data/g"}, archiveOf(t))
		require.ErrorIs(t, err, errs.ErrInvalid)
		err = m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/"}, archiveOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "../x"}))
		require.ErrorIs(t, err, errs.ErrInvalid)
		broken := errors.New("the disk of the host")
		err = m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/"}, io.MultiReader(strings.NewReader("x"), failing{broken}))
		require.ErrorIs(t, err, broken)
		if running {
			err = m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/etc"}, archiveOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "hosts"}))
			require.ErrorIs(t, err, errs.ErrInUse)
		}

		diff, err := m.Diff(ctx, api.DiffRequest{ID: req.ID})
		require.NoError(t, err)
		require.Equal(t, []api.Change{
			{Path: "/data", Kind: "added"}, {Path: "/data/g", Kind: "added"}, {Path: "/data/sub", Kind: "added"},
			{Path: "/data/sub/f", Kind: "added"}, {Path: "/data/sub/in", Kind: "added"},
			{Path: "/etc", Kind: "modified"}, {Path: "/etc/passwd", Kind: "modified"}, {Path: "/link", Kind: "added"},
			{Path: "/sbin", Kind: "modified"}, {Path: "/sbin/tool", Kind: "deleted"},
			{Path: "/secret", Kind: "modified"}, {Path: "/secret/new", Kind: "added"}, {Path: "/secret/tool", Kind: "deleted"},
		}, diff.Changes)
		rest, err := m.Diff(ctx, api.DiffRequest{ID: req.ID, After: "/sbin"})
		require.NoError(t, err)
		require.Equal(t, diff.Changes[9:], rest.Changes)

		r, err = m.Export(ctx, api.ExportRequest{ID: req.ID, Layer: true})
		require.NoError(t, err)
		names, _ := entries(t, r)
		require.Equal(t, []string{"data/", "data/g", "data/sub/", "data/sub/f", "data/sub/in", "etc/", "etc/passwd", "link",
			"sbin/", "sbin/.wh.tool", "secret/", "secret/.wh..wh..opq", "secret/new"}, names)
		r, err = m.Export(ctx, api.ExportRequest{ID: req.ID})
		require.NoError(t, err)
		names, body = entries(t, r)
		require.Contains(t, names, "proc/")
		require.NotContains(t, names, "proc/self")
		require.NotContains(t, names, "secret/tool")
		require.Contains(t, names, "bin/busybox")
		require.Equal(t, "image's own\n", body["etc/hosts"])
	}
	check(true)
	require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "KILL"}))
	_, err := m.Wait(ctx, api.WaitRequest{ID: req.ID})
	require.NoError(t, err)
	check(false)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestHostileContainerCannotRedirectCopies copies while the container swaps a directory for links out of its root.
func TestHostileContainerCannotRedirectCopies(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"busybox", "sh", "-c", `busybox mkdir -p /d/sub; busybox ln -s ../../../../run /d/out; echo ready
		while :; do busybox mv /d/sub /d/x; busybox mv /d/out /d/sub; busybox mv /d/sub /d/out; busybox mv /d/x /d/sub; done`})
	m.startUntil(t, req, "ready\n")
	hits := 0
	for range 60 {
		_ = m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/d"}, archiveOf(t,
			tar.Header{Typeflag: tar.TypeReg, Name: "sub/planted", Uname: "x"}))
		r, err := m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/d/sub/."})
		if err != nil {
			continue
		}
		names, _ := entries(t, r)
		require.NotContains(t, names, "./c/", "the agent's directory of containers")
		hits++
	}
	require.NotZero(t, hits)
	_, err := m.Ping(ctx)
	require.NoError(t, err)
}

// TestRemoveDuringCopy holds that a removal does not wait for a reader who does not read.
func TestRemoveDuringCopy(t *testing.T) {
	m := useMachine(t)
	ctx := testContext(t)
	req := request(t, []string{"sh", "-c", "busybox truncate -s 100G /big; echo ready; exec sleep 1000"})
	m.startUntil(t, req, "ready\n")
	r, err := m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/big"})
	require.NoError(t, err)
	defer r.Close()
	_, err = io.ReadFull(r, make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID, Force: true}))
	_, err = io.Copy(io.Discard, r)
	require.Error(t, err)
	_, err = m.Stat(ctx, api.StatRequest{ID: req.ID, Path: "/"})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

// BenchmarkCopy measures archives of a file of 64 MB out of a container and into it.
func BenchmarkCopy(b *testing.B) {
	m := useMachine(b)
	ctx := testContext(b)
	req := request(b, []string{"sh", "-c", "head -c 67108864 /dev/urandom > /big; echo ready; exec sleep 1000"})
	m.startUntil(b, req, "ready\n")
	for b.Loop() {
		start := time.Now()
		r, err := m.CopyFrom(ctx, api.CopyFromRequest{ID: req.ID, Path: "/big"})
		require.NoError(b, err)
		data, err := io.ReadAll(r)
		require.NoError(b, err)
		b.ReportMetric(float64(len(data))/1e6/time.Since(start).Seconds(), "out_MB/s")
		start = time.Now()
		require.NoError(b, m.CopyTo(ctx, api.CopyToRequest{ID: req.ID, Path: "/tmp"}, bytes.NewReader(data)))
		b.ReportMetric(float64(len(data))/1e6/time.Since(start).Seconds(), "in_MB/s")
	}
}
