package boot

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// testRegistry starts a registry and returns its host.
func testRegistry(t *testing.T) (host string, stop func()) {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), s.Close
}

// pushBundle pushes files as a kernel bundle and returns its digest.
func pushBundle(t *testing.T, ref string, annotations map[string]string, files ...fixture.File) string {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	var err error
	for _, f := range files {
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(f.Body, "application/vnd.arcbox.kernel"),
			Annotations: map[string]string{titleAnnotation: f.Name},
		})
		require.NoError(t, err)
	}
	img = mutate.Annotations(img, annotations).(v1.Image)
	r, err := name.ParseReference(ref)
	require.NoError(t, err)
	require.NoError(t, remote.Write(r, img))
	d, err := img.Digest()
	require.NoError(t, err)
	return d.String()
}

func TestResolveFromBundle(t *testing.T) {
	host, stop := testRegistry(t)
	kernel := fixture.BzImage(codec.Zstd, fixture.Vmlinux(fixture.AMD64, true, 50_000))
	for _, f := range []codec.Format{codec.None, codec.Gzip, codec.XZ, codec.Zstd} {
		modules := fixture.Pack(f, fixture.Tar(fixture.ModuleFiles("lib/modules/"+testRelease)))
		pushBundle(t, host+"/kernel:mods"+string(f), nil, fixture.File{Name: BundleKernel, Body: kernel}, fixture.File{Name: BundleModules, Body: modules}, fixture.File{Name: "README", Body: []byte("x")})
	}
	plain := pushBundle(t, host+"/kernel:plain", map[string]string{BundleRelease: "9.9"}, fixture.File{Name: BundleKernel, Body: kernel})

	cfg := Config{Dir: t.TempDir(), Arch: "amd64", Agent: testAgent(t)}
	digests := map[string]bool{}
	for _, tag := range []string{"mods", "modsgzip", "modsxz", "modszstd"} {
		cfg.Image = host + "/kernel:" + tag
		a, err := Resolve(t.Context(), cfg)
		require.NoError(t, err, tag)
		require.Equal(t, testRelease, a.Release)
		digests[a.Digest] = true
	}
	require.Len(t, digests, 1, "the same kernel and modules, however packed")

	cfg.Image = host + "/kernel@" + plain
	a, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, "9.9", a.Release)
	require.Equal(t, "image "+host+"/kernel@"+plain, a.Source)

	stop()
	b, err := Resolve(t.Context(), cfg)
	require.NoError(t, err, "the cache answers")
	require.Equal(t, a, b)
	cfg.Image = host + "/kernel:unknown"
	_, err = Resolve(t.Context(), cfg)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	cfg.Offline = true
	_, err = Resolve(t.Context(), cfg)
	require.ErrorContains(t, err, "Offline")
}

func TestBadBundlesAreErrors(t *testing.T) {
	host, _ := testRegistry(t)
	kernel := fixture.File{Name: BundleKernel, Body: fixture.Vmlinux(fixture.AMD64, true, 0)}
	two := append(fixture.ModuleFiles("lib/modules/1"), fixture.ModuleFiles("lib/modules/2")...)
	for label, c := range map[string]struct {
		files []fixture.File
		want  error
	}{
		"no kernel":      {[]fixture.File{{Name: "other", Body: []byte("x")}}, errs.ErrInvalid},
		"broken modules": {[]fixture.File{kernel, {Name: BundleModules, Body: []byte("no tar at all, but long enough for a header" + strings.Repeat(".", 600))}}, errs.ErrCorrupt},
		"two releases":   {[]fixture.File{kernel, {Name: BundleModules, Body: fixture.Tar(two)}}, errs.ErrInvalid},
		"no kernel file": {[]fixture.File{{Name: BundleKernel, Body: []byte("text")}}, errs.ErrInvalid},
	} {
		t.Run(label, func(t *testing.T) {
			ref := host + "/bad:" + strings.ReplaceAll(label, " ", "-")
			pushBundle(t, ref, nil, c.files...)
			dir := t.TempDir()
			_, err := Resolve(t.Context(), Config{Dir: dir, Arch: "amd64", Image: ref, Agent: testAgent(t)})
			require.ErrorIs(t, err, c.want)
			require.Empty(t, leftovers(t, dir))
			sources, err := os.ReadDir(filepath.Join(dir, "sources"))
			require.NoError(t, err)
			require.Empty(t, sources)
		})
	}
}
