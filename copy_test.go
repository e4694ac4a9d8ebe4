package arcbox_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// runAs runs a container to its end and keeps it, under a name.
func runAs(t *testing.T, rt *arcbox.Runtime, name, script string) {
	t.Helper()
	ctx := testContext(t)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveContainer(testContext(t), name, arcbox.RemoveOptions{Force: true}))
	})
	p, err := rt.RunContainer(ctx, arcbox.ContainerSpec{Name: name, Image: "busybox:test", Args: sh(script)}, arcbox.RunOptions{})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
}

func tarOf(t *testing.T, name, body string) io.Reader {
	return bytes.NewReader(imagetest.Tar(t, imagetest.Entry{Name: name, File: imagetest.File{Data: []byte(body), Mode: 0o644}}))
}

func readTar(t *testing.T, r io.ReadCloser) map[string]string {
	t.Helper()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		b, err := io.ReadAll(tr)
		require.NoError(t, err)
		out[h.Name] = string(b)
	}
	require.NoError(t, r.Close())
	return out
}

// TestCopyAndCommit takes a container that has exited through all that is done with files.
func TestCopyAndCommit(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	runAs(t, rt, "files", "mkdir /made && echo one > /made/one && rm /bin/ls && chmod 700 /made")
	info, err := rt.StatPath(ctx, "files", "/made")
	require.NoError(t, err)
	require.Equal(t, "made", info.Name)
	require.True(t, info.Mode.IsDir())
	require.NoError(t, rt.CopyTo(ctx, "files", "/made", tarOf(t, "two", "from the host"), arcbox.CopyToOptions{}))
	r, info, err := rt.CopyFrom(ctx, "files", "/made")
	require.NoError(t, err)
	require.Equal(t, "made", info.Name)
	require.Equal(t, map[string]string{"made/": "", "made/one": "one\n", "made/two": "from the host"}, readTar(t, r))
	changes, err := rt.DiffContainer(ctx, "files")
	require.NoError(t, err)
	require.Equal(t, []arcbox.Change{
		{Path: "/bin", Kind: arcbox.ChangeModified}, {Path: "/bin/ls", Kind: arcbox.ChangeDeleted},
		{Path: "/made", Kind: arcbox.ChangeAdded}, {Path: "/made/one", Kind: arcbox.ChangeAdded}, {Path: "/made/two", Kind: arcbox.ChangeAdded},
	}, changes)
	r, err = rt.ExportContainer(ctx, "files")
	require.NoError(t, err)
	whole := readTar(t, r)
	require.Equal(t, "one\n", whole["made/one"])
	require.NotContains(t, whole, "bin/ls")

	img, err := rt.CommitContainer(ctx, "files", arcbox.CommitOptions{
		Names: []string{"committed:test"}, Author: "a", Comment: "c",
		Change: func(c *ocispec.ImageConfig) { c.Cmd = sh("cat /made/one /made/two; test -e /bin/ls || echo gone >&2") },
	})
	require.NoError(t, err)
	require.Equal(t, []string{"docker.io/library/committed:test"}, img.Names)
	got := run(t, rt, arcbox.ContainerSpec{Image: "committed:test"}, arcbox.RunOptions{})
	require.Equal(t, "one\nfrom the host", got.stdout)
	require.Equal(t, "gone\n", got.stderr)
}

func TestCommitOfRunningContainerGoesOn(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Image: "busybox:test", Args: sh("exec sleep 1000")}, arcbox.CreateOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.RemoveContainer(ctx, info.ID, arcbox.RemoveOptions{Force: true})) }()
	require.NoError(t, rt.StartContainer(ctx, info.ID))
	require.NoError(t, rt.CopyTo(ctx, info.ID, "/", tarOf(t, "note", "x"), arcbox.CopyToOptions{}))
	img, err := rt.CommitContainer(ctx, info.ID, arcbox.CommitOptions{})
	require.NoError(t, err)
	require.Empty(t, img.Names)
	now, err := rt.InspectContainer(ctx, info.ID)
	require.NoError(t, err)
	require.Equal(t, arcbox.ContainerRunning, now.State)
	got := run(t, rt, arcbox.ContainerSpec{Image: img.ID, Args: sh("cat /note")}, arcbox.RunOptions{})
	require.Equal(t, "x", got.stdout)
	_, err = rt.CommitContainer(ctx, info.ID, arcbox.CommitOptions{Names: []string{"NOT A NAME"}})
	require.ErrorIs(t, err, arcbox.ErrInvalid)
}

func TestCopyErrorsAndCancel(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	runAs(t, rt, "errors", "dd if=/dev/zero of=/big bs=1 count=0 seek=8G 2>/dev/null")
	_, _, err := rt.CopyFrom(ctx, "errors", "/none")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	_, err = rt.StatPath(ctx, "nobody", "/")
	require.ErrorIs(t, err, arcbox.ErrNotFound)
	require.ErrorIs(t, rt.CopyTo(ctx, "errors", "/big", tarOf(t, "f", ""), arcbox.CopyToOptions{}), arcbox.ErrInvalid)
	require.ErrorIs(t, rt.CopyTo(ctx, "errors", "/", tarOf(t, "../f", ""), arcbox.CopyToOptions{}), arcbox.ErrInvalid)

	short, cancel := context.WithCancel(ctx)
	r, _, err := rt.CopyFrom(short, "errors", "/big")
	require.NoError(t, err)
	cancel()
	_, err = io.Copy(io.Discard, r)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, r.Close())

	r, _, err = rt.CopyFrom(ctx, "errors", "/big")
	require.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	_, err = io.Copy(io.Discard, r)
	require.Error(t, err)
}

// TestCopyToWhereItDoesNotFit copies to a root that is read-only and to a file system without room, and goes on.
func TestCopyToWhereItDoesNotFit(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	id := begin(t, rt, arcbox.ContainerSpec{ReadOnly: true, Tmpfs: []arcbox.Tmpfs{{Path: "/small", Size: 1 << 20}}}, "sleep 1000")
	require.ErrorIs(t, rt.CopyTo(ctx, id, "/", tarOf(t, "f", "x"), arcbox.CopyToOptions{}), arcbox.ErrConflict)
	err := rt.CopyTo(ctx, id, "/small", tarOf(t, "big", strings.Repeat("x", 2<<20)), arcbox.CopyToOptions{})
	require.ErrorIs(t, err, arcbox.ErrUnavailable)
	require.ErrorContains(t, err, "no space")
	out, err := rt.CommandContext(ctx, id, "sh", "-c", "rm -f /small/*; df /small | grep -c small").Output()
	require.NoError(t, err)
	require.Equal(t, "1\n", string(out))
	require.NoError(t, rt.CopyTo(ctx, id, "/small", tarOf(t, "f", "x"), arcbox.CopyToOptions{}))
	r, _, err := rt.CopyFrom(ctx, id, "/small/f")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"f": "x"}, readTar(t, r))
}
