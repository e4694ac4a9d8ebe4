package arcbox_test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/internal/share"
)

// onHost is a mount of a directory of the host at /s.
func onHost(dir string) []arcbox.Mount {
	return []arcbox.Mount{{Type: arcbox.MountBind, Source: dir, Target: "/s"}}
}

// asOnMac is a mount at /s of a directory or a file of the host that is served as on macOS.
func asOnMac(path string) []arcbox.Mount {
	return []arcbox.Mount{{Type: arcbox.MountFS, FS: share.Portable{FS: os.DirFS(path), Path: path}, Target: "/s"}}
}

func TestShare(t *testing.T) {
	t.Run("Linux", func(t *testing.T) { testShare(t, onHost) })
	t.Run("portable", func(t *testing.T) { testShare(t, asOnMac) })
}

func testShare(t *testing.T, mounts func(path string) []arcbox.Mount) {
	rt := shared.get(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "from-host"), []byte("hello\n"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "out")))
	require.NoError(t, os.Symlink("../..", filepath.Join(dir, "sub", "up")))
	spec := arcbox.ContainerSpec{Mounts: mounts(dir)}
	spec.Args = sh(`cat /s/from-host; ls /s; ls /s/sub/up | grep -c bin; cat /s/out 2>&1
		echo new > /s/sub/made; mv /s/sub/made /s/moved; ln /s/moved /s/second; ln -s moved /s/soft; cat /s/soft
		chmod 640 /s/moved; chown 7:8 /s/moved; stat -c '%a %u:%g %h' /s/second; touch -d @1000000000 /s/moved; rm /s/second
		dd if=/dev/zero of=/s/big bs=1M count=5 2>/dev/null; md5sum < /s/big; mkfifo /s/pipe; mknod /s/dev c 1 3 2>&1; chmod 4755 /s/moved; echo done`)
	res := run(t, rt, spec, arcbox.RunOptions{})
	want := "hello\nfrom-host\nout\nsub\n1\ncat: can't open '/s/out': No such file or directory\nnew\n640 7:8 2\n" +
		"5f363e0e58a95f06cbe9bbc662c5dfb6  -\nmknod: /s/dev: Operation not permitted\ndone\n"
	require.Equal(t, want, res.stdout, res.stderr)
	st, err := os.Stat(filepath.Join(dir, "moved"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), st.Mode(), "without the bit that changes the user")
	require.Equal(t, int64(1000000000), st.ModTime().Unix())

	spec.Mounts[0].ReadOnly = true
	spec.Args = sh("cat /s/from-host; echo x > /s/new; rm /s/moved; chmod 777 /s/moved; mkdir /s/d")
	res = run(t, rt, spec, arcbox.RunOptions{})
	require.Equal(t, "hello\n", res.stdout)
	require.Equal(t, 4, strings.Count(res.stderr, "Read-only file system"), res.stderr)

	spec.Mounts = mounts(filepath.Join(dir, "from-host"))
	spec.Mounts[0].Target = "/etc/a/file"
	spec.Args = sh("cat /etc/a/file; echo more >> /etc/a/file")
	require.Equal(t, "hello\n", run(t, rt, spec, arcbox.RunOptions{}).stdout)
	b, err := os.ReadFile(filepath.Join(dir, "from-host"))
	require.NoError(t, err)
	require.Equal(t, "hello\nmore\n", string(b))
}

// TestShareSeesChanges changes files on both sides of a container that runs, and makes their directory vanish.
func TestShareSeesChanges(t *testing.T) {
	t.Run("Linux", func(t *testing.T) { testShareSeesChanges(t, onHost) })
	t.Run("portable", func(t *testing.T) { testShareSeesChanges(t, asOnMac) })
}

func testShareSeesChanges(t *testing.T, mounts func(path string) []arcbox.Mount) {
	rt := shared.get(t)
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "dir")
	require.NoError(t, os.Mkdir(dir, 0o755))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("one\n"), 0o644))
	spec := arcbox.ContainerSpec{Name: "sees-changes", Image: "busybox:test", Mounts: mounts(dir)}
	spec.Args = sh(`await() { until grep -q $1 /s/file; do sleep 0.05; done; echo $1; }
		exec 3< /s/file; await one; await two; await three
		echo four > /s/answer; echo written
		while test -e /s/file -o -e /s/answer; do sleep 0.05; done
		head -n 1 <&3; ls /s; touch /s/x; echo end`)
	r, w := io.Pipe()
	var stderr bytes.Buffer
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{Stdout: w, Stderr: &stderr})
	require.NoError(t, err)
	t.Cleanup(func() {
		r.Close()
		require.NoError(t, rt.RemoveContainer(context.Background(), p.ContainerID(), arcbox.RemoveOptions{Force: true}))
	})
	lines := bufio.NewScanner(r)
	await := func(want string) {
		t.Helper()
		require.True(t, lines.Scan())
		require.Equal(t, want, lines.Text())
	}
	await("one")
	require.NoError(t, os.WriteFile(file, []byte("two, and longer\n"), 0o644))
	changed := time.Now()
	await("two")
	require.Less(t, time.Since(changed), 20*time.Second, "a second, and what a busy machine takes")
	require.NoError(t, os.WriteFile(file+".new", []byte("three\n"), 0o644))
	require.NoError(t, os.Rename(file+".new", file))
	await("three")
	await("written")
	b, err := os.ReadFile(filepath.Join(dir, "answer"))
	require.NoError(t, err)
	require.Equal(t, "four\n", string(b))
	require.NoError(t, os.RemoveAll(dir))
	await("two, and longer")
	await("end")
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.Zero(t, exit.Code)
	require.Contains(t, stderr.String(), "touch: /s/x: Input/output error")
}

func TestShareFS(t *testing.T) {
	rt := shared.get(t)
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	f, err := w.Create("dir/in-zip")
	require.NoError(t, err)
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	zipped, err := zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("in a directory\n"), 0o600))
	require.NoError(t, os.Symlink("file", filepath.Join(dir, "link")))
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close()
	spec := arcbox.ContainerSpec{Mounts: []arcbox.Mount{
		{Type: arcbox.MountFS, FS: root.FS(), Target: "/dir"}, // as a directory is mounted where the system is not Linux
		{Type: arcbox.MountFS, FS: fstest.MapFS{"a/b": {Data: []byte("in a map\n")}, "run": {Data: []byte("#!/bin/sh\necho ran\n"), Mode: 0o755}}, Target: "/map"},
		{Type: arcbox.MountFS, FS: zipped, Target: "/zip"},
		{Type: arcbox.MountFS, FS: os.DirFS(filepath.Join(t.TempDir(), "none")), Target: "/none"},
	}}
	spec.Args = sh("cat /dir/link; cat /map/a/b; /map/run; ls /map /zip/dir; md5sum < /zip/dir/in-zip; tail -c 5 /zip/dir/in-zip; echo; echo x > /map/new; ls /none")
	spec.User = "1000"
	res := run(t, rt, spec, arcbox.RunOptions{})
	want := fmt.Sprintf("in a directory\nin a map\nran\n/map:\na\nrun\n\n/zip/dir:\nin-zip\n%x  -\nbcdef\n", md5.Sum(content))
	require.Equal(t, want, res.stdout)
	require.Contains(t, res.stderr, "Read-only file system")
	require.Contains(t, res.stderr, "ls: /none")
}

// listed counts how often the directories of a file system are read.
type listed struct {
	fs.FS
	dirs chan string
}

func (l listed) ReadDir(name string) ([]fs.DirEntry, error) {
	select {
	case l.dirs <- name:
	default:
	}
	return fs.ReadDir(l.FS, name)
}

// TestShareReadsAhead looks at many files, one by one, which the guest answers by a look at their directory.
func TestShareReadsAhead(t *testing.T) {
	rt := shared.get(t)
	files := fstest.MapFS{}
	for i := range 300 {
		files[fmt.Sprintf("dir/%d", i)] = &fstest.MapFile{}
	}
	l := listed{files, make(chan string, 100)}
	spec := arcbox.ContainerSpec{
		Mounts: []arcbox.Mount{{Type: arcbox.MountFS, FS: l, Target: "/s"}},
		Args:   sh(`for i in $(seq 0 299); do test -f /s/dir/$i || echo $i is not there; test -e /s/dir/no-$i && echo $i is there; done`),
	}
	require.Empty(t, run(t, rt, spec, arcbox.RunOptions{}).stdout)
	require.NotEmpty(t, l.dirs)
	require.Equal(t, "dir", <-l.dirs)
}

var slowPosix = flag.Bool("posix.slow", false, "let TestSharePosix ask all, which takes minutes on a busy machine")

// What TestSharePosix does not ask: whether a process that opens a file twice is in the way of its own lock, which POSIX does
// not want, and, but for -posix.slow, what takes thousands of round trips.
const (
	notPosix     = "FcntlFlockLocksFile"
	manyRequests = "|OpenSymlinkRace|DirSeek|FdLeak|FileLarge|ParallelFileOpen|LinkUnlinkRename|ReadDirConsistency|XAttrLarge"
)

// What a share does not have that is served as on macOS, and what TestSharePosix asks of one without -posix.slow.
const (
	notPortable = "|FallocateKeepSize|Fallocate|SetattrSymlink|RenameFlags|Sparse"
	onPortable  = "TestPosix/(FileBasic|FstatDeleted|NlinkZero|PermissionsOfOthers|SetGroupOfDirectory|SharedMemory|Times|UnlinkedFile)$"
)

// TestSharePosix runs a program in a container that asks the share what POSIX asks of a file system.
func TestSharePosix(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(testContext(t), "go", "test", "-c", "-o", filepath.Join(bin, "posix"), "./internal/share/testdata/posix")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	t.Run("Linux", func(t *testing.T) { testSharePosix(t, bin, onHost, ".", notPosix) })
	t.Run("portable", func(t *testing.T) {
		ask := onPortable
		if *slowPosix {
			ask = "."
		}
		testSharePosix(t, bin, asOnMac, ask, notPosix+notPortable)
	})
}

func testSharePosix(t *testing.T, bin string, mounts func(path string) []arcbox.Mount, ask, skip string) {
	rt, dir := shared.get(t), t.TempDir()
	if !*slowPosix {
		skip += manyRequests
	}
	spec := arcbox.ContainerSpec{Args: []string{"/t/posix", "-test.v", "-test.run", ask, "-test.skip", "TestPosix/(" + skip + ")", "-dir", "/s"}, CapAdd: []string{"ALL"}, Mounts: append(mounts(dir),
		arcbox.Mount{Type: arcbox.MountBind, Source: bin, Target: "/t", ReadOnly: true})}
	limit := 3 * time.Minute
	if *slowPosix {
		limit = time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	spec.Image = "busybox:test"
	var stdout, stderr bytes.Buffer
	p, err := rt.RunContainer(ctx, spec, arcbox.RunOptions{Stdout: &stdout, Stderr: &stderr})
	require.NoError(t, err)
	exit, err := p.Wait(ctx)
	require.NoError(t, err, stdout.String())
	require.NoError(t, rt.RemoveContainer(ctx, p.ContainerID(), arcbox.RemoveOptions{}))
	res := result{exit, stdout.String(), stderr.String()}
	require.Zero(t, res.exit.Code, res.stdout+res.stderr)
	require.Contains(t, res.stdout, "--- PASS: TestPosix/SharedMemory")
	require.NotContains(t, res.stdout, "--- FAIL")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
