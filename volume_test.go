package arcbox_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/event"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
)

// onVolume is a mount of a volume at /v.
func onVolume(name string) []arcbox.Mount {
	return []arcbox.Mount{{Type: arcbox.MountVolume, Source: name, Target: "/v"}}
}

func TestVolume(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	made, err := rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: "plain", Labels: map[string]string{"of": "TestVolume"}})
	require.NoError(t, err)
	_, err = rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: "plain"})
	require.ErrorIs(t, err, arcbox.ErrExists)
	list, err := rt.ListVolumes(ctx, arcbox.ListVolumesOptions{Labels: []string{"of=TestVolume"}})
	require.NoError(t, err)
	require.Equal(t, []arcbox.VolumeInfo{made}, list)

	spec := arcbox.ContainerSpec{Mounts: onVolume("plain")}
	spec.Args = sh("mkdir -p /v/a/b; echo text > /v/a/b/f; ln -s /etc /v/a/out; chown 7:8 /v/a/b; echo ok")
	require.Equal(t, "ok\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	spec.Args, spec.Mounts[0].ReadOnly = sh("cat /v/a/b/f; echo x > /v/new"), true
	res := run(t, rt, spec, arcbox.RunOptions{})
	require.Equal(t, "text\n", res.stdout, "another container finds it")
	require.Contains(t, res.stderr, "Read-only file system")
	spec.Args = sh("ls /v")
	spec.Mounts[0].SubPath = "a/b"
	require.Equal(t, "f\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	spec.Args, spec.Mounts[0].SubPath = sh("cat /v"), "a/b/f"
	require.Equal(t, "text\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	for _, sub := range []string{"a/nothing", "a/out"} { // the link leads to /etc of the volume
		spec.Name, spec.Image, spec.Mounts[0].SubPath = "no-sub-path", "busybox:test", sub
		_, err = rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
		require.ErrorIs(t, err, arcbox.ErrNotFound, sub)
	}

	info, err := rt.CreateContainer(ctx, arcbox.ContainerSpec{Name: "user", Image: "busybox:test", Mounts: onVolume("plain")}, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, []arcbox.MountPoint{{Type: arcbox.MountVolume, Source: "plain", Target: "/v"}}, info.Mounts)
	err = rt.RemoveVolume(ctx, "plain")
	require.ErrorIs(t, err, arcbox.ErrInUse)
	require.ErrorContains(t, err, "user")
	require.NoError(t, rt.RemoveContainer(ctx, "user", arcbox.RemoveOptions{Volumes: true}))
	made, err = rt.InspectVolume(ctx, "plain", arcbox.InspectVolumeOptions{Usage: true})
	require.NoError(t, err, "only anonymous volumes go with a container")
	require.Empty(t, made.UsedBy)
	require.Equal(t, int64(4), made.Usage.Files)
	require.Positive(t, made.Usage.Bytes)

	var archive bytes.Buffer
	require.NoError(t, rt.ExportVolume(ctx, "plain", &archive))
	require.NoError(t, rt.RemoveVolume(ctx, "plain"))
	require.ErrorIs(t, rt.RemoveVolume(ctx, "plain"), arcbox.ErrNotFound)
	require.ErrorIs(t, rt.ImportVolume(ctx, "plain", &archive), arcbox.ErrNotFound)
	_, err = rt.CreateVolume(ctx, arcbox.VolumeSpec{Name: "plain"})
	require.NoError(t, err)
	spec = arcbox.ContainerSpec{Mounts: onVolume("plain"), Args: sh("ls /v; stat -c %u:%g /v/a/b; cat /v/a/b/f; readlink /v/a/out")}
	require.Empty(t, func() string {
		spec := spec
		spec.Args = sh("ls /v")
		return run(t, rt, spec, arcbox.RunOptions{}).stdout
	}(), "a new volume of the old name has nothing of it")
	require.NoError(t, rt.ImportVolume(ctx, "plain", bytes.NewReader(archive.Bytes())))
	require.Equal(t, "a\n7:8\ntext\n/etc\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	require.ErrorIs(t, rt.ImportVolume(ctx, "plain", bytes.NewReader(archive.Bytes()[:1000])), arcbox.ErrCorrupt)
	require.NoError(t, rt.RemoveVolume(ctx, "plain"))
}

func TestImageFillsVolume(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	img, err := imagetest.Busybox(t)
	require.NoError(t, err)
	img.Names = []string{"data:test"}
	img.Config.Volumes = map[string]struct{}{"/srv/data": {}, "/anon": {}}
	img.Layers = append(img.Layers, imagetest.Gzip(imagetest.Tar(t,
		imagetest.Entry{Name: "srv/", File: imagetest.File{Type: tar.TypeDir, Mode: 0o755}},
		imagetest.Entry{Name: "srv/data/", File: imagetest.File{Type: tar.TypeDir, Mode: 0o1770, Uid: 70, Gid: 71, Xattrs: map[string]string{"user.top": "1"}}},
		imagetest.Entry{Name: "srv/data/file", File: imagetest.File{Mode: 0o640, Uid: 72, Gid: 73, Data: []byte("of the image\n"), Xattrs: map[string]string{"user.of": "file"}}},
		imagetest.Entry{Name: "srv/data/other", File: imagetest.File{Type: tar.TypeLink, Link: "srv/data/file"}},
		imagetest.Entry{Name: "anon/", File: imagetest.File{Type: tar.TypeDir, Mode: 0o755}},
	)))
	load(t, rt, img)
	const look = "stat -c '%a %u:%g' /srv/data; stat -c '%n %a %u:%g %h' /srv/data/*; cat /srv/data/file"
	const found = "1770 70:71\n/srv/data/file 640 72:73 2\n/srv/data/other 640 72:73 2\nof the image\n"
	spec := arcbox.ContainerSpec{Image: "data:test", Args: sh(look)}
	spec.Mounts = []arcbox.Mount{{Type: arcbox.MountVolume, Source: "filled", Target: "/srv/data"}}
	require.Equal(t, found, run(t, rt, spec, arcbox.RunOptions{}).stdout)
	spec.Args = sh("rm /srv/data/file; echo mine > /srv/data/other")
	run(t, rt, spec, arcbox.RunOptions{})
	spec.Args = sh("ls /srv/data; cat /srv/data/other")
	require.Equal(t, "other\nmine\n", run(t, rt, spec, arcbox.RunOptions{}).stdout, "it is filled once")
	require.NoError(t, rt.RemoveVolume(ctx, "filled"))

	spec.Mounts[0].NoCopy = true
	spec.Args = sh("ls /srv/data; stat -c '%a %u:%g' /srv/data")
	require.Equal(t, "755 0:0\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	require.NoError(t, rt.RemoveVolume(ctx, "filled"))

	events := rt.Events(ctx, arcbox.EventsOptions{Kinds: []event.Kind{event.VolumeCreated, event.VolumeRemoved}})
	spec = arcbox.ContainerSpec{Name: "anon", Image: "data:test", Args: sh(look)}
	info, err := rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.Len(t, info.Mounts, 2)
	for _, m := range info.Mounts {
		require.True(t, m.Anonymous)
		require.Equal(t, event.VolumeCreated, (<-events).Kind)
	}
	require.NoError(t, rt.RemoveContainer(ctx, "anon", arcbox.RemoveOptions{Volumes: true}))
	for range info.Mounts {
		require.Equal(t, event.VolumeRemoved, (<-events).Kind)
	}
	left, err := rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, rt.RemoveContainer(ctx, "anon", arcbox.RemoveOptions{}))
	_, err = rt.InspectVolume(ctx, left.Mounts[0].Source, arcbox.InspectVolumeOptions{})
	require.NoError(t, err)
	pruned, err := rt.PruneVolumes(ctx, arcbox.PruneVolumesOptions{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(pruned), 2)
	_, err = rt.InspectVolume(ctx, left.Mounts[0].Source, arcbox.InspectVolumeOptions{})
	require.ErrorIs(t, err, arcbox.ErrNotFound)
}

// TestCopyToVolumeOfStoppedContainer copies files to and from a container that was never started, and one that has ended.
func TestCopyToVolumeOfStoppedContainer(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	spec := arcbox.ContainerSpec{Name: "copied-stopped", Image: "busybox:test", ReadOnly: true, Args: sh("cat /v/in/f"), Mounts: []arcbox.Mount{
		{Type: arcbox.MountVolume, Source: "copied", Target: "/v/in"}, {Type: arcbox.MountVolume, Source: "fixed", Target: "/fixed", ReadOnly: true},
	}}
	_, err := rt.CreateContainer(ctx, spec, arcbox.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveContainer(context.Background(), spec.Name, arcbox.RemoveOptions{}))
		require.NoError(t, rt.RemoveVolume(context.Background(), "copied"))
		require.NoError(t, rt.RemoveVolume(context.Background(), "fixed"))
	})
	for _, text := range []string{"created\n", "ended\n"} {
		file := func() io.Reader { return tarOf(t, "f", text) }
		require.NoError(t, rt.CopyTo(ctx, spec.Name, "/v/in", file(), arcbox.CopyToOptions{}))
		require.ErrorIs(t, rt.CopyTo(ctx, spec.Name, "/v", file(), arcbox.CopyToOptions{}), arcbox.ErrConflict, "the root is read-only")
		require.ErrorIs(t, rt.CopyTo(ctx, spec.Name, "/fixed", file(), arcbox.CopyToOptions{}), arcbox.ErrConflict)
		st, err := rt.StatPath(ctx, spec.Name, "/v/in/f")
		require.NoError(t, err)
		require.Equal(t, int64(len(text)), st.Size)
		other := arcbox.ContainerSpec{Mounts: onVolume("copied"), Args: sh("cat /v/f")}
		require.Equal(t, text, run(t, rt, other, arcbox.RunOptions{}).stdout)
		rc, _, err := rt.CopyFrom(ctx, spec.Name, "/v")
		require.NoError(t, err)
		require.Equal(t, text, readTar(t, rc)["v/in/f"])
		rc, err = rt.ExportContainer(ctx, spec.Name)
		require.NoError(t, err)
		require.NotContains(t, readTar(t, rc), "v/in/f")
		require.NoError(t, rt.StartContainer(ctx, spec.Name))
		_, err = rt.WaitContainer(ctx, spec.Name, arcbox.WaitOptions{})
		require.NoError(t, err)
	}
}

func TestBadMounts(t *testing.T) {
	rt, err := arcbox.New(testConfig(t))
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	loadBusybox(t, rt)
	volume := func(source, target, sub string) arcbox.Mount {
		return arcbox.Mount{Type: arcbox.MountVolume, Source: source, Target: target, SubPath: sub}
	}
	for name, tt := range map[string]struct {
		mounts []arcbox.Mount
		want   error
		text   string
	}{
		"no type":           {[]arcbox.Mount{{Target: "/v"}}, arcbox.ErrInvalid, "type of a mount"},
		"relative target":   {[]arcbox.Mount{volume("a", "v", "")}, arcbox.ErrInvalid, `target of a mount "v"`},
		"no target":         {[]arcbox.Mount{volume("a", "", "")}, arcbox.ErrInvalid, "target of a mount"},
		"the root":          {[]arcbox.Mount{volume("a", "/x/..", "")}, arcbox.ErrInvalid, "target of a mount"},
		"in /proc":          {[]arcbox.Mount{volume("a", "/proc/x", "")}, arcbox.ErrInvalid, "target of a mount"},
		"zero byte":         {[]arcbox.Mount{volume("a", "/v\x00", "")}, arcbox.ErrInvalid, "target of a mount"},
		"bad name":          {[]arcbox.Mount{volume("../a", "/v", "")}, arcbox.ErrInvalid, `volume name "../a"`},
		"sub-path upwards":  {[]arcbox.Mount{volume("a", "/v", "x/../../y")}, arcbox.ErrInvalid, "sub-path"},
		"absolute sub-path": {[]arcbox.Mount{volume("a", "/v", "/y")}, arcbox.ErrInvalid, "sub-path"},
		"mount over mount":  {[]arcbox.Mount{volume("a", "/v", ""), volume("b", "/v/", "")}, arcbox.ErrConflict, `the target "/v/"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rt.CreateContainer(testContext(t), arcbox.ContainerSpec{Image: "busybox:test", Mounts: tt.mounts}, arcbox.CreateOptions{})
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, tt.text)
		})
	}
	over := arcbox.ContainerSpec{Image: "busybox:test", Tmpfs: []arcbox.Tmpfs{{Path: "/v"}}, Mounts: onVolume("a")}
	_, err = rt.CreateContainer(testContext(t), over, arcbox.CreateOptions{})
	require.ErrorIs(t, err, arcbox.ErrConflict)
	for _, name := range []string{"/", "a b", "..", strings.Repeat("x", 129)} {
		_, err := rt.CreateVolume(testContext(t), arcbox.VolumeSpec{Name: name})
		require.ErrorIs(t, err, arcbox.ErrInvalid, name)
	}
	list, err := rt.ListVolumes(testContext(t), arcbox.ListVolumesOptions{})
	require.NoError(t, err)
	require.Empty(t, list, "nothing was made")
}

func TestMountsLieOnEachOther(t *testing.T) {
	rt := shared.get(t)
	spec := arcbox.ContainerSpec{
		Args:   sh("cd /v; echo 1 > f; echo 2 > tmp/f; echo 3 > tmp/in/f; grep -c ' /v' /proc/mounts; cat f tmp/f tmp/in/f"),
		Tmpfs:  []arcbox.Tmpfs{{Path: "/v/tmp"}},
		Mounts: []arcbox.Mount{{Type: arcbox.MountVolume, Target: "/v/tmp/in"}, {Type: arcbox.MountVolume, Target: "/v"}},
	}
	require.Equal(t, "3\n1\n2\n3\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
}

// The database of TestDatabaseSurvivesTheKill, from its start to its first answer.
const startRedis = `redis-server --dir /db --appendonly yes --appendfsync always --save '' --daemonize yes --logfile /db/log >/dev/null
	until redis-cli ping | grep -q PONG; do sleep 0.05; done
	`

// TestDatabaseSurvivesTheKill kills the owner of a machine with SIGKILL while a database on a volume writes, and finds in
// another process all that the database had acknowledged.
func TestDatabaseSurvivesTheKill(t *testing.T) {
	shared.get(t)
	img, err := imagetest.Programs(t)
	require.NoError(t, err)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600))
	cmd := exec.CommandContext(testContext(t), os.Args[0], ownerArg, dir, bootDir(t), file, startRedis+"redis-cli -r 1000000 incr n", img.Names[0])
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "200" {
		require.NotContains(t, lines.Text(), "error")
	}
	require.Equal(t, "200", lines.Text())
	require.NoError(t, cmd.Process.Kill())
	last := 200
	for lines.Scan() { // what it wrote before it was killed; its last line may be cut
		if n, err := strconv.Atoi(lines.Text()); err == nil && n == last+1 {
			last = n
		}
	}
	require.Error(t, cmd.Wait())

	cfg := testConfig(t)
	cfg.DataDir = dir
	rt := newRuntime(t, cfg)
	spec := arcbox.ContainerSpec{Image: img.Names[0], Args: sh(startRedis + "redis-cli get n"), Mounts: []arcbox.Mount{
		{Type: arcbox.MountVolume, Source: "db", Target: "/db"},
	}}
	n, err := strconv.Atoi(strings.TrimSpace(run(t, rt, spec, arcbox.RunOptions{}).stdout))
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, last, "what the database has acknowledged")
	list, err := rt.ListContainers(testContext(t), arcbox.ListContainersOptions{})
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.ErrorIs(t, rt.RemoveVolume(testContext(t), "db"), arcbox.ErrInUse, "the container of the killed program has it still")
}
