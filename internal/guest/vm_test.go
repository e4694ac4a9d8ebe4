package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/boot"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/qemu"
)

// shared is the machine that most tests share. The first test that needs it boots it, TestMain ends it.
var shared struct {
	once sync.Once
	m    *machine
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.m != nil {
		shared.m.inst.Close()
		os.RemoveAll(shared.m.dir)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testTimeout is far above what a test takes on a slow and busy host.
const testTimeout = 2 * time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// machine is a booted machine and its agent.
type machine struct {
	*agent.Client
	inst vm.Instance
	dir  string // of its disk images
}

func dial(inst vm.Instance) api.DialFunc {
	return func(ctx context.Context) (net.Conn, error) { return inst.Dial(ctx, api.Port) }
}

const noLayers = "no-layers"

// bootMachine boots a machine with the layers of the tests: base has busybox, users has an /etc/passwd over it. One with the
// name noLayers has the disks of its spec only.
func bootMachine(ctx context.Context, spec vm.Spec) (_ *machine, err error) {
	m := &machine{}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	assets, err := boot.Resolve(ctx, boot.Config{Dir: filepath.Join(cache, "arcbox-test", "boot"), Arch: spec.Arch})
	if err != nil {
		return nil, err
	}
	if m.dir, err = os.MkdirTemp("", "guest-test"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(m.dir)
		}
	}()
	files, err := baseFiles(ctx, m.dir, spec.Arch)
	if err != nil {
		return nil, err
	}
	spec.Kernel, spec.Initramfs = assets.Kernel, assets.Initramfs
	var layers []vm.Disk
	for name, list := range map[string][]file{"base": files, "users": userFiles()} {
		path := filepath.Join(m.dir, name)
		if err := writeLayer(path, list); err != nil {
			return nil, err
		}
		layers = append(layers, vm.Disk{ID: name, Path: path, ReadOnly: true})
	}
	if spec.Name != noLayers {
		spec.Disks = append(spec.Disks, layers...)
	}
	if m.inst, err = qemu.New(qemu.Config{}).Start(ctx, spec); err != nil {
		return nil, err
	}
	m.Client = agent.New(dial(m.inst))
	if _, err := m.Ping(ctx); err != nil {
		m.inst.Close()
		return nil, err
	}
	return m, nil
}

// useMachine returns the shared machine, booted with the first test.
func useMachine(t testing.TB) *machine {
	t.Helper()
	shared.once.Do(func() { shared.m, shared.err = bootMachine(testContext(t), vm.Spec{CPUs: 2}) })
	needs.Machine(t, shared.err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", shared.m.inst.(vm.ConsoleTailer).ConsoleTail())
		}
	})
	return shared.m
}

// ownMachine boots a machine for one test.
func ownMachine(t testing.TB, spec vm.Spec) *machine {
	t.Helper()
	m, err := bootMachine(testContext(t), spec)
	needs.Machine(t, err)
	t.Cleanup(func() {
		m.inst.Close()
		os.RemoveAll(m.dir)
		if t.Failed() {
			t.Logf("console:\n%s", m.inst.(vm.ConsoleTailer).ConsoleTail())
		}
	})
	return m
}

// file is one entry of a layer.
type file struct {
	name string // a directory ends with a slash
	mode int64
	body string
	link string // a symbolic link's target
	dev  byte   // tar's type of a device, 0 for none
}

func writeLayer(path string, files []file) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body)), Linkname: f.link, Typeflag: tar.TypeReg}
		switch {
		case f.dev != 0:
			h.Typeflag = f.dev
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		case f.link != "":
			h.Typeflag = tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	return tar2ext4.Convert(&b, out, tar2ext4.ConvertWhiteout)
}

// baseFiles are busybox, the probe, and some things that cannot be executed. Nothing else: no /proc, no /etc, no /tmp.
// For another architecture than the host's there is no busybox.
func baseFiles(ctx context.Context, dir, arch string) ([]file, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: busybox is not installed: %w", errs.ErrUnavailable, err)
	}
	bin := filepath.Join(dir, "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	probe, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	files := []file{
		{name: "bin/", mode: 0o755},
		{name: "bin/busybox", mode: 0o755, body: string(busybox)},
		{name: "bin/probe", mode: 0o755, body: string(probe)},
		{name: "bin/plain", mode: 0o644, body: "x"},
		{name: "bin/garbage", mode: 0o755, body: "\x00\x01\x02garbage"},
		{name: "bin/nointerp", mode: 0o755, body: "#!/nowhere/sh\n"},
		{name: "bin/self", mode: 0o755, body: "#!/proc/self/exe\n"},
		{name: "bin/loop", mode: 0o755, link: "loop"},
		{name: "sbin/", mode: 0o755},
		{name: "sbin/tool", mode: 0o644, body: "not executable"},
		{name: "secret/", mode: 0o700},
		{name: "secret/tool", mode: 0o755, body: "#!/bin/sh\necho secret\n"},
		{name: "tmp/", mode: 0o1777},
	}
	for _, tool := range strings.Fields("sort cut sh true false echo cat ls id hostname uname mount ps sleep env tty stty ip pwd " +
		"sort cut mknod head tail wc dd kill stat readlink touch rm ulimit grep tool md5sum yes date nc chmod mkdir tr") {
		if tool != "tool" {
			files = append(files, file{name: "bin/" + tool, mode: 0o755, link: "busybox"})
		}
	}
	return append(files, file{name: "bin/tool", mode: 0o755, body: "#!/bin/sh\necho the right tool\n"}), nil
}

// userFiles are a layer with users, and a whiteout.
func userFiles() []file {
	return []file{
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, body: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"},
		{name: "etc/group", mode: 0o644, body: "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\n"},
		{name: "etc/hosts", mode: 0o644, body: "image's own\n"},
		{name: "home/", mode: 0o755},
		{name: "home/app/", mode: 0o700},
		{name: "bin/", mode: 0o755},
		{name: "bin/.wh.garbage", mode: 0o644},
	}
}

// result is what a container's process left.
type result struct {
	stdout, stderr string
	exit           api.Exit
}

// spec changes a request.
type spec func(*api.CreateRequest)

func layers(names ...string) spec {
	return func(r *api.CreateRequest) {
		r.Layers = nil
		for _, n := range names {
			r.Layers = append(r.Layers, api.Layer{Serial: n})
		}
	}
}

func withUser(u string) spec { return func(r *api.CreateRequest) { r.Process.User = u } }

// request is a container of the base layer that is named after the test.
func request(t testing.TB, args []string, specs ...spec) api.CreateRequest {
	id := strings.Map(func(r rune) rune {
		if r == '/' || r == '#' || r == ',' || r == '\'' || r == ' ' {
			return '-'
		}
		return r
	}, t.Name())
	req := api.CreateRequest{ID: id, Layers: []api.Layer{{Serial: "base"}}, Process: api.Process{Args: args}}
	for _, s := range specs {
		s(&req)
	}
	return req
}

// create makes a container that is removed when the test ends.
func (m *machine) create(t testing.TB, req api.CreateRequest) {
	t.Helper()
	require.NoError(t, m.Create(testContext(t), req))
	t.Cleanup(func() {
		select {
		case <-m.inst.Done():
			return
		default:
		}
		err := m.Remove(testContext(t), api.RemoveRequest{ID: req.ID, Force: true})
		if err != nil && !errors.Is(err, errs.ErrNotFound) {
			t.Error(err)
		}
	})
}

// run runs a container to its end and removes it.
func (m *machine) run(t testing.TB, req api.CreateRequest, stdin string) (result, error) {
	t.Helper()
	ctx := testContext(t)
	m.create(t, req)
	var stdout, stderr bytes.Buffer
	p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID, Stdin: stdin != ""}, &stdout, &stderr)
	require.NoError(t, err)
	defer p.Close()
	_, startErr := m.Start(ctx, api.StartRequest{ID: req.ID})
	if stdin != "" {
		_, err := io.WriteString(p.Stdin(), stdin)
		require.NoError(t, err)
		require.NoError(t, p.Stdin().Close())
	}
	exit, err := p.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, m.Remove(ctx, api.RemoveRequest{ID: req.ID}))
	return result{stdout.String(), stderr.String(), exit}, startErr
}

// sh runs a shell's script in a container and returns what it wrote.
func (m *machine) sh(t testing.TB, script string, specs ...spec) string {
	t.Helper()
	r, err := m.run(t, request(t, []string{"sh", "-c", script}, specs...), "")
	require.NoError(t, err)
	require.Equal(t, api.Exit{}, r.exit, r.stderr)
	require.Empty(t, r.stderr)
	return r.stdout
}
