package boot

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestBadConfigIsRefused(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		cfg  Config
		want error
	}{
		"no directory":          {Config{}, errs.ErrInvalid},
		"unknown architecture":  {Config{Dir: "d", Arch: "riscv64"}, errs.ErrUnsupported},
		"two sources":           {Config{Dir: "d", Kernel: "k", Image: "i"}, errs.ErrInvalid},
		"modules alone":         {Config{Dir: "d", Modules: "m"}, errs.ErrInvalid},
		"URL without digest":    {Config{Dir: "d", URL: "http://h/p"}, errs.ErrInvalid},
		"short digest":          {Config{Dir: "d", URL: "http://h/p", SHA256: "abc"}, errs.ErrInvalid},
		"upper case digest":     {Config{Dir: "d", URL: "http://h/p", SHA256: strings.ToUpper(sum)}, errs.ErrInvalid},
		"digest without URL":    {Config{Dir: "d", SHA256: sum}, errs.ErrInvalid},
		"other protocol":        {Config{Dir: t.TempDir(), Arch: "amd64", URL: "file:///etc/passwd", SHA256: sum, Agent: testAgent(t)}, errs.ErrInvalid},
		"bad reference":         {Config{Dir: t.TempDir(), Arch: "amd64", Image: "A B", Agent: testAgent(t)}, errs.ErrInvalid},
		"missing kernel":        {Config{Dir: t.TempDir(), Arch: "amd64", Kernel: "/missing", Agent: testAgent(t)}, errs.ErrNotFound},
		"kernel is a directory": {Config{Dir: t.TempDir(), Arch: "amd64", Kernel: "/", Agent: testAgent(t)}, errs.ErrInvalid},
		"missing agent":         {Config{Dir: t.TempDir(), Arch: "amd64", Kernel: "/missing", Agent: "/missing"}, errs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Resolve(t.Context(), c.cfg)
			require.ErrorIs(t, err, c.want)
		})
	}
	require.NoDirExists(t, "d")
}

func TestResolveFromURL(t *testing.T) {
	t.Run("with dpkg-deb", testResolveFromURL)
	t.Run("without", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		testResolveFromURL(t)
	})
}

func testResolveFromURL(t *testing.T) {
	data, sum := testPackage()
	url, requests := server(t, data)
	steps := map[Step]Progress{}
	cfg := Config{
		Dir: t.TempDir(), Arch: "amd64", URL: url + "/k.deb", SHA256: sum, Agent: testAgent(t),
		Progress: func(p Progress) { steps[p.Step] = p },
	}
	a, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, "amd64", a.Arch)
	require.Equal(t, testRelease, a.Release)
	require.Equal(t, url+"/k.deb", a.Source)
	require.Len(t, a.Digest, 64)
	kernel, err := os.ReadFile(a.Kernel)
	require.NoError(t, err)
	require.Equal(t, sumOf(fixture.Vmlinux(fixture.AMD64, true, 100_000)), sumOf(kernel))
	for _, step := range []Step{StepDownload, StepUnpack, StepCompose} {
		require.Equal(t, steps[step].Total, steps[step].Done, step)
		require.NotZero(t, steps[step].Done, step)
	}

	clear(steps)
	b, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.Empty(t, steps, "the cache has all")
	require.EqualValues(t, 1, requests.Load())

	cfg.Offline = true
	require.NoError(t, os.RemoveAll(filepath.Join(cfg.Dir, kindKernel)))
	c, err := Resolve(t.Context(), cfg)
	require.NoError(t, err, "the package is cached")
	require.Equal(t, a.Digest, c.Digest)
	require.EqualValues(t, 1, requests.Load())

	cfg.Dir = t.TempDir()
	_, err = Resolve(t.Context(), cfg)
	require.ErrorIs(t, err, errs.ErrUnavailable)
}

func TestInitramfsHoldsAgentModulesAndList(t *testing.T) {
	data, sum := testPackage()
	url, _ := server(t, data)
	a, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", URL: url, SHA256: sum, Agent: testAgent(t)})
	require.NoError(t, err)
	b, err := os.ReadFile(a.Initramfs)
	require.NoError(t, err)
	text := string(b)
	dir := "/lib/modules/" + testRelease + "/"
	require.Contains(t, text, "early "+dir+"kernel/drivers/virtio/virtio.ko\n"+
		"early "+dir+"kernel/drivers/virtio/virtio_ring.ko\n"+
		"early "+dir+"kernel/drivers/virtio/virtio_pci.ko\n"+
		"early "+dir+"kernel/drivers/char/virtio_console.ko\n"+
		"late "+dir+"kernel/drivers/scsi/scsi_mod.ko\n"+
		"late "+dir+"kernel/drivers/scsi/virtio_scsi.ko\n"+
		"late "+dir+"kernel/drivers/scsi/sd_mod.ko\n"+
		"late "+dir+"kernel/fs/overlayfs/overlay.ko\n"+
		"late "+dir+"kernel/drivers/char/hw_random/virtio-rng.ko\n"+
		"demand "+dir+"kernel/drivers/block/loop.ko\n")
	require.Contains(t, text, "kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/scsi/scsi_mod.ko kernel/drivers/virtio/virtio.ko\n")
	require.Contains(t, text, "alias test:loop loop\n")
	require.Contains(t, text, "kernel/ext4.ko\n", "what is built in")
	require.NotContains(t, text, "nobody_wants_this")
	require.Contains(t, text, "init\x00")
	require.Contains(t, text, "dev/console\x00")
	require.Contains(t, text, "dev/null\x00")
}

func TestWrongContentIsRefusedAndNotKept(t *testing.T) {
	data, sum := testPackage()
	text := []byte("<html>not found</html>")
	noKernel := fixture.Deb(codec.Gzip, []fixture.File{{Name: "etc/x"}})
	lacking := fixture.Deb(codec.Gzip, []fixture.File{
		{Name: "boot/vmlinuz-1", Body: fixture.Vmlinux(fixture.AMD64, true, 0)},
		{Name: "lib/modules/1/modules.builtin"},
	})
	foreign := fixture.Deb(codec.Gzip, []fixture.File{{Name: "boot/vmlinuz-1", Body: fixture.Vmlinux(fixture.ARM64, true, 0)}})
	two := fixture.Deb(codec.Gzip, []fixture.File{{Name: "boot/vmlinuz-1"}, {Name: "boot/vmlinuz-2"}})
	for name, c := range map[string]struct {
		data []byte
		sum  string
		want error
	}{
		"other bytes":        {data[:len(data)-1], sum, errs.ErrCorrupt},
		"no package":         {text, sumOf(text), errs.ErrCorrupt},
		"no kernel":          {noKernel, sumOf(noKernel), errs.ErrInvalid},
		"module missing":     {lacking, sumOf(lacking), errs.ErrNotFound},
		"other architecture": {foreign, sumOf(foreign), errs.ErrInvalid},
		"two kernels":        {two, sumOf(two), errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := server(t, c.data)
			dir := t.TempDir()
			_, err := Resolve(t.Context(), Config{Dir: dir, Arch: "amd64", URL: url, SHA256: c.sum, Agent: testAgent(t)})
			require.ErrorIs(t, err, c.want)
			require.Empty(t, leftovers(t, dir))
			names, err := os.ReadDir(filepath.Join(dir, kindKernel))
			require.NoError(t, err)
			require.Empty(t, names)

			good, goodSum := testPackage()
			url, _ = server(t, good)
			_, err = Resolve(t.Context(), Config{Dir: dir, Arch: "amd64", URL: url, SHA256: goodSum, Agent: testAgent(t)})
			require.NoError(t, err, "the next call works")
		})
	}
}

func TestServerErrorsAreUnavailable(t *testing.T) {
	_, sum := testPackage()
	for _, status := range []int{404, 500} {
		var requests atomic.Int32
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			requests.Add(1)
			w.WriteHeader(status)
		}))
		_, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", URL: s.URL, SHA256: sum, Agent: testAgent(t)})
		s.Close()
		require.ErrorIs(t, err, errs.ErrUnavailable)
		require.EqualValues(t, map[int]int{404: 1, 500: attempts}[status], requests.Load())
	}
	_, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", URL: "http://user:secret@127.0.0.1:1/x", SHA256: sum, Agent: testAgent(t)})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.NotContains(t, err.Error(), "secret")
}

func TestBrokenDownloadIsTakenUpAgain(t *testing.T) {
	data, sum := testPackage()
	var ranges []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) == 1 {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(data[:1000])
			return // the server sees that less was written and breaks the connection
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
	}))
	defer s.Close()
	_, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", URL: s.URL, SHA256: sum, Agent: testAgent(t)})
	require.NoError(t, err)
	require.Equal(t, []string{"", "bytes=1000-"}, ranges)
}

func TestCancelledDownloadLeavesNothing(t *testing.T) {
	data, sum := testPackage()
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(data[:1000])
		_ = http.NewResponseController(w).Flush()
		cancel(why)
		<-r.Context().Done()
	}))
	defer s.Close()
	dir := t.TempDir()
	_, err := Resolve(ctx, Config{Dir: dir, Arch: "amd64", URL: s.URL, SHA256: sum, Agent: testAgent(t)})
	require.ErrorIs(t, err, why)
	require.Empty(t, leftovers(t, dir))
}

func TestKernelFromFiles(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "bzImage")
	modules := filepath.Join(dir, "6.9-mine")
	require.NoError(t, os.WriteFile(kernel, fixture.BzImage(codec.Gzip, fixture.Vmlinux(fixture.AMD64, true, 1000)), 0o600))
	for _, f := range fixture.ModuleFiles(modules) {
		require.NoError(t, os.MkdirAll(filepath.Dir(f.Name), 0o700))
		require.NoError(t, os.WriteFile(f.Name, f.Body, 0o600))
	}
	cfg := Config{Dir: filepath.Join(dir, "cache"), Arch: "amd64", Kernel: kernel, Modules: modules, Agent: testAgent(t), Offline: true}
	a, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, "6.9-mine", a.Release)
	same, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, a, same)

	changed := filepath.Join(modules, "kernel/fs/overlayfs/overlay.ko")
	require.NoError(t, os.WriteFile(changed, fixture.Module("depends=", "version=2"), 0o600))
	b, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.NotEqual(t, a.Digest, b.Digest, "a module has changed")
	require.NotEqual(t, a.Initramfs, b.Initramfs)
	require.FileExists(t, a.Initramfs, "who started with the old one still has it")

	cfg.Modules = ""
	c, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Empty(t, c.Release)
	list, err := os.ReadFile(c.Initramfs)
	require.NoError(t, err)
	require.NotContains(t, string(list), "virtio")
}

func TestBuiltInListIsUsedWithAMirror(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		p, url, err := pinned(arch, "")
		require.NoError(t, err)
		require.True(t, isSHA256(p.SHA256))
		require.Positive(t, p.Size)
		require.True(t, strings.HasPrefix(url, "https://"), url)
		_, url, err = pinned(arch, "http://mirror/base/")
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(url, "http://mirror/base/debian"), url)
	}
	_, _, err := pinned("riscv64", "")
	require.ErrorIs(t, err, errs.ErrUnsupported)

	url, requests := server(t, []byte("not what the list says"))
	t.Setenv("PATH", t.TempDir()) // a system without apt
	_, err = Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", Mirror: url, Agent: testAgent(t)})
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorIs(t, err, errs.ErrCorrupt)
	require.ErrorContains(t, err, "set Kernel and Modules, or URL and SHA256")
	require.EqualValues(t, 1, requests.Load())
}
