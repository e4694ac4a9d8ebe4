package image

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func gzipped(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func removeRef(t testing.TB, s *Store, ref string, force bool) error {
	_, err := s.Remove(t.Context(), ref, RemoveOptions{Force: force})
	return err
}

func load(t testing.TB, s *Store, data []byte) ([]Image, error) {
	t.Helper()
	return s.LoadStream(t.Context(), bytes.NewReader(data), LoadOptions{})
}

func TestLoadEveryForm(t *testing.T) {
	img := threeLayers(t)
	img.Names = []string{"test/three:1", "localhost:5000/other:2"}
	layout := t.TempDir()
	imagetest.WriteLayout(t, layout, img)
	oci, docker := imagetest.OCIArchive(t, img), imagetest.DockerArchive(t, img)
	file := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "archive")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	for name, path := range map[string]string{
		"layout": layout, "oci": file(oci), "oci gzip": file(gzipped(t, oci)), "docker": file(docker), "docker gzip": file(gzipped(t, docker)),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			for range 2 { // the second finds everything there
				got, err := s.Load(t.Context(), path, LoadOptions{Name: "third"})
				require.NoError(t, err)
				require.Len(t, got, 1)
				require.Equal(t, img.ID(t), got[0].ID)
				require.Equal(t, []string{"docker.io/library/third:latest", "docker.io/test/three:1", "localhost:5000/other:2"}, got[0].Names)
				require.Equal(t, img.Config, got[0].Config)
				disks, err := s.Layers(t.Context(), got[0])
				require.NoError(t, err)
				for i, d := range disks {
					requireClean(t, d.Path)
					require.Equal(t, noise(uint64(i+1), 300_000-i*100_000), readExt4(t, d.Path, "/"+string(rune('a'+i))))
				}
				requireTidy(t, s)
			}
		})
	}
}

func TestLoadSeveralImages(t *testing.T) {
	a, b, other := threeLayers(t), threeLayers(t), threeLayers(t)
	a.Names, b.Names = []string{"a:1"}, []string{"b:1"}
	b.Config.Cmd = []string{"/b"}
	other.Names, other.Platform = []string{"c:1"}, ocispec.Platform{OS: "linux", Architecture: "s390x"}
	for name, data := range map[string][]byte{"oci": imagetest.OCIArchive(t, a, b, other), "docker": imagetest.DockerArchive(t, a, b, other)} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			got, err := load(t, s, data)
			require.NoError(t, err)
			require.Len(t, got, 2, "the third is for another platform")
			_, err = s.LoadStream(t.Context(), bytes.NewReader(data), LoadOptions{Name: "x"})
			require.ErrorIs(t, err, errs.ErrInvalid, "one name for two images")
			list, err := s.List(t.Context())
			require.NoError(t, err)
			require.Len(t, list, 2)
		})
	}
	s := openStore(t)
	_, err := load(t, s, imagetest.DockerArchive(t, other))
	require.ErrorIs(t, err, errs.ErrUnsupported)
	require.ErrorContains(t, err, "linux/s390x")
}

// TestLoadTruncatedAnywhere cuts archives at many places: never an image, never a left-over, always an error that says what
// is wrong.
func TestLoadTruncatedAnywhere(t *testing.T) {
	img := threeLayers(t)
	oci, docker := imagetest.OCIArchive(t, img), imagetest.DockerArchive(t, img)
	s := openStore(t)
	for name, data := range map[string][]byte{"oci": oci, "docker": docker, "gzip": gzipped(t, oci)} {
		end := len(data) - 1024 // the end marker of a plain archive may be missing
		if name == "gzip" {
			end = len(data) - 1
		}
		for cut := 0; cut < end; cut += 1 + len(data)/37 {
			_, err := load(t, s, data[:cut])
			require.Error(t, err, "%s cut at %d", name, cut)
			require.True(t, errors.Is(err, errs.ErrCorrupt) || errors.Is(err, errs.ErrInvalid), "%s cut at %d: %v", name, cut, err)
			list, err := s.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, list)
		}
	}
	requireTidy(t, s)
	_, err := load(t, s, oci)
	require.NoError(t, err, "the next call works")
}

// TestLoadFlippedBytes changes single bytes of layer content: the digest tells.
func TestLoadFlippedBytes(t *testing.T) {
	img := threeLayers(t)
	for name, data := range map[string][]byte{"oci": imagetest.OCIArchive(t, img), "docker": imagetest.DockerArchive(t, img)} {
		data = bytes.Clone(data)
		at := bytes.Index(data, noise(3, 100))
		require.Positive(t, at)
		data[at] ^= 1
		s := openStore(t)
		_, err := load(t, s, data)
		require.ErrorIs(t, err, errs.ErrCorrupt, name)
		requireTidy(t, s)
	}
}

func TestLoadRefuses(t *testing.T) {
	tarOf := func(files map[string]string) []byte {
		var entries []entry
		for name, data := range files {
			entries = append(entries, reg(name, data))
		}
		return imagetest.Tar(t, entries...)
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":            {nil, errs.ErrInvalid},
		"text":             {[]byte(strings.Repeat("hello ", 1000)), errs.ErrInvalid},
		"no image":         {tarOf(map[string]string{"etc/passwd": "root"}), errs.ErrInvalid},
		"index no json":    {tarOf(map[string]string{"index.json": "{"}), errs.ErrInvalid},
		"index empty":      {tarOf(map[string]string{"index.json": `{"manifests":[]}`}), errs.ErrInvalid},
		"index no digest":  {tarOf(map[string]string{"index.json": `{"manifests":[{"digest":"x"}]}`}), errs.ErrInvalid},
		"index path":       {tarOf(map[string]string{"index.json": `{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}`}), errs.ErrInvalid},
		"index incomplete": {tarOf(map[string]string{"index.json": `{"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`}), errs.ErrCorrupt},
		"docker no json":   {tarOf(map[string]string{"manifest.json": "x"}), errs.ErrInvalid},
		"docker empty":     {tarOf(map[string]string{"manifest.json": "[]"}), errs.ErrInvalid},
		"docker no config": {tarOf(map[string]string{"manifest.json": `[{"Config":"c.json"}]`}), errs.ErrCorrupt},
		"docker path":      {tarOf(map[string]string{"manifest.json": `[{"Config":"../../etc/passwd"}]`}), errs.ErrInvalid},
		"docker tag":       {tarOf(map[string]string{"manifest.json": `[{"Config":"c","RepoTags":["UPPER CASE"]}]`}), errs.ErrInvalid},
		"docker no layer":  {tarOf(map[string]string{"manifest.json": `[{"Config":"c","Layers":["l"]}]`, "c": "{}"}), errs.ErrCorrupt},
		"leads out":        {tarOf(map[string]string{"../x": "y"}), errs.ErrInvalid},
		"links in circle":  {imagetest.Tar(t, sym("index.json", "a"), sym("a", "index.json")), errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			_, err := load(t, s, c.data)
			require.ErrorIs(t, err, c.want)
			requireTidy(t, s)
		})
	}
	s := openStore(t)
	_, err := s.Load(t.Context(), filepath.Join(t.TempDir(), "missing"), LoadOptions{})
	require.ErrorIs(t, err, errs.ErrNotFound)
}

func TestLayoutDirectoryCannotLeadOut(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(outside, []byte(`{"manifests":[]}`), 0o600))
	dir := t.TempDir()
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "index.json")))
	s := openStore(t)
	_, err := s.Load(t.Context(), dir, LoadOptions{})
	require.Error(t, err)
	require.NotErrorIs(t, err, errs.ErrInvalid, "it was not read")
}

func TestGetTagRemove(t *testing.T) {
	s := openStore(t)
	img := threeLayers(t)
	_, err := load(t, s, imagetest.OCIArchive(t, img))
	require.NoError(t, err)
	ctx, id := t.Context(), img.ID(t)
	for ref, want := range map[string]error{
		"": errs.ErrInvalid, "UPPER": errs.ErrInvalid, "a b": errs.ErrInvalid, strings.Repeat("a", 5000): errs.ErrInvalid,
		"nothing": errs.ErrNotFound, "0000000": errs.ErrNotFound, "sha256:" + strings.Repeat("0", 64): errs.ErrNotFound,
	} {
		_, err := s.Get(ctx, ref)
		require.ErrorIs(t, err, want, "%.20q", ref)
		require.ErrorIs(t, removeRef(t, s, ref, true), want, "%.20q", ref)
		require.ErrorIs(t, s.Tag(ctx, ref, "x"), want, "%.20q", ref)
	}
	require.NoError(t, s.Tag(ctx, id.Encoded()[:6], "more"))
	require.ErrorIs(t, s.Tag(ctx, "more", "x@"+id.String()), errs.ErrInvalid)
	require.ErrorIs(t, removeRef(t, s, id.String(), false), errs.ErrInUse)
	require.NoError(t, removeRef(t, s, "test/three:1", false))
	_, err = s.Get(ctx, "test/three:1")
	require.ErrorIs(t, err, errs.ErrNotFound)
	got, err := s.Get(ctx, "more")
	require.NoError(t, err)
	require.Equal(t, []string{"docker.io/library/more:latest"}, got.Names)
	require.NoError(t, removeRef(t, s, "more", false))
	_, err = s.Get(ctx, id.String())
	require.ErrorIs(t, err, errs.ErrNotFound, "the last name takes the image along")
}

func TestShortIDOfTwoImages(t *testing.T) {
	s := openStore(t)
	seen := map[string]digest.Digest{}
	for i := 0; ; i++ {
		img := imagetest.Image{Config: ocispec.ImageConfig{Cmd: []string{fmt.Sprint(i)}}}
		id := img.ID(t)
		other, ok := seen[id.Encoded()[:4]]
		seen[id.Encoded()[:4]] = id
		if !ok {
			continue
		}
		for _, id := range []digest.Digest{id, other} {
			require.NoError(t, writeJSON(s.recordPath(id), record{ID: id, Config: ocispec.Descriptor{Digest: id}, Manifest: ocispec.Descriptor{Digest: id}}))
		}
		_, err := s.Get(t.Context(), id.Encoded()[:4])
		require.ErrorIs(t, err, errs.ErrInvalid)
		require.ErrorContains(t, err, id.Encoded())
		require.ErrorContains(t, err, other.Encoded())
		return
	}
}

func TestCorruptRecordsHurtNobodyElse(t *testing.T) {
	s := openStore(t)
	a, b := threeLayers(t), threeLayers(t)
	a.Names, b.Names, b.Config.Cmd = []string{"t/a"}, []string{"t/b"}, []string{"/b"}
	data := imagetest.OCIArchive(t, a, b)
	got, err := load(t, s, data)
	require.NoError(t, err)
	for _, path := range []string{s.refPath("docker.io/t/a:latest"), s.recordPath(got[0].ID)} {
		for _, bad := range []string{"", "{", `{"id":"sha256:../../x"}`, "null", strings.Repeat("x", 100)} {
			require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
			_, err = s.Get(t.Context(), "t/a")
			require.ErrorIs(t, err, errs.ErrCorrupt, bad)
			require.ErrorContains(t, err, path)
			list, err := s.List(t.Context())
			require.NoError(t, err)
			require.True(t, slices.ContainsFunc(list, func(i Image) bool { return i.ID == got[1].ID }))
			_, err = s.Get(t.Context(), "t/b")
			require.NoError(t, err)
		}
		_, err = load(t, s, data)
		require.NoError(t, err)
		_, err = s.Get(t.Context(), "t/a")
		require.NoError(t, err, "loading mends it")
	}
	require.NoError(t, os.WriteFile(s.recordPath(got[0].ID), nil, 0o600))
	_, err = s.Prune(t.Context(), PruneOptions{})
	require.ErrorIs(t, err, errs.ErrCorrupt)
	require.NoError(t, removeRef(t, s, "t/a", false), "a corrupt image can be removed")
}

func TestLayerImageIsMadeAgain(t *testing.T) {
	s := openStore(t)
	got, err := load(t, s, imagetest.OCIArchive(t, threeLayers(t)))
	require.NoError(t, err)
	disks, err := s.Layers(t.Context(), got[0])
	require.NoError(t, err)
	want, err := os.ReadFile(disks[0].Path)
	require.NoError(t, err)
	for name, damage := range map[string]func(path string) error{
		"gone":  os.Remove,
		"short": func(p string) error { return os.WriteFile(p, want[:len(want)/2], 0o600) },
		"empty": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"bit": func(p string) error {
			bad := bytes.Clone(want)
			bad[len(bad)/3] ^= 1
			return os.WriteFile(p, bad, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			// Writing through the old file would change its inode's content in place, which root may.
			if name != "gone" {
				require.NoError(t, os.Remove(disks[0].Path))
			}
			require.NoError(t, damage(disks[0].Path))
			again := openStore(t, func(c *Config) { c.Dir = s.dir }) // has verified nothing yet
			_, err = again.Layers(t.Context(), got[0])
			require.NoError(t, err)
			back, err := os.ReadFile(disks[0].Path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, back), "and the same, byte for byte")
		})
	}
	requireTidy(t, s)
}

func TestDamagedBlobIsFoundAndFetchedAgain(t *testing.T) {
	reg := imagetest.NewRegistry(t)
	ref := reg.Push(t, "app", "1", threeLayers(t))
	s := openStore(t)
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	disks, err := s.Layers(t.Context(), img)
	require.NoError(t, err)
	for i, d := range disks {
		require.NoError(t, os.Remove(d.Path))
		path, err := s.blobs.path(img.Layers[i].Digest)
		require.NoError(t, err)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		data[len(data)/2] ^= 1
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, data, 0o400))
		_, err = s.Layers(t.Context(), img)
		require.ErrorIs(t, err, errs.ErrCorrupt)
		_, err = s.Layers(t.Context(), img)
		require.ErrorIs(t, err, errs.ErrNotFound)
		_, err = s.Pull(t.Context(), ref, PullOptions{})
		require.NoError(t, err)
	}
	requireTidy(t, s)
}

func TestOpenErrors(t *testing.T) {
	_, err := Open(Config{})
	require.ErrorIs(t, err, errs.ErrInvalid)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = Open(Config{Dir: path})
	require.ErrorIs(t, err, syscall.ENOTDIR)
	s := openStore(t)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "twice")
	_, err = s.List(t.Context())
	require.ErrorIs(t, err, errs.ErrClosed)
}

// TestDiskFull runs with a tmpfs that is too small, which needs root.
func TestDiskFull(t *testing.T) {
	dir := needs.SmallDir(t, "1m")
	srv := imagetest.NewRegistry(t)
	img := imagetest.Image{Names: []string{"big"}, Layers: []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, reg("a", string(noise(1, 2<<20)))))}}
	ref := srv.Push(t, "big", "1", img)
	s, err := Open(Config{Dir: dir, Keychain: authn.NewMultiKeychain()})
	require.NoError(t, err)
	_, err = s.Pull(t.Context(), ref, PullOptions{})
	require.ErrorIs(t, err, syscall.ENOSPC)
	requireTidy(t, s)
	for name, data := range map[string][]byte{"oci": imagetest.OCIArchive(t, img), "docker": imagetest.DockerArchive(t, img)} {
		_, err = load(t, s, data)
		require.ErrorIs(t, err, syscall.ENOSPC, name)
		requireTidy(t, s)
	}
	needs.Grow(t, dir, "64m")
	_, err = s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err, "the next call works")
	require.NoError(t, s.Close())
}

// TestKilledProcesses has other processes pull, remove and prune in one directory and kills them at any moment.
func TestNothingIsLogged(t *testing.T) {
	old := os.Stderr
	r, w, err := os.Pipe()
	require.NoError(t, err)
	os.Stderr = w
	s := openStore(t)
	_, err = load(t, s, imagetest.OCIArchive(t, threeLayers(t)))
	os.Stderr = old
	require.NoError(t, err)
	require.NoError(t, w.Close())
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Empty(t, string(out))
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"alpine", "localhost:5000/x", "a/b@sha256:" + strings.Repeat("0", 64), "a:b@sha256:x", "::", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		name, err := Normalize(ref)
		if err != nil {
			require.NotEmpty(t, errs.Code(err))
			return
		}
		again, err := Normalize(name)
		require.NoError(t, err)
		require.Equal(t, name, again)
	})
}

func FuzzManifest(f *testing.F) {
	img := threeLayers(f)
	f.Add(img.Manifest(f), img.ConfigBlob(f))
	f.Add(imagetest.Index(f, img), []byte("{}"))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		l := Limits{}.withDefaults()
		doc, err := parseDocument(manifest, l)
		if err != nil {
			require.NotEmpty(t, errs.Code(err), "%v", err)
			return
		}
		if doc.isIndex() {
			_, _ = choose(doc.Manifests, ocispec.Platform{OS: "linux", Architecture: "amd64"})
			return
		}
		if _, err := parseImage(describe(manifest, doc), doc, config, ocispec.Platform{OS: "linux", Architecture: "amd64"}); err != nil {
			require.NotEmpty(t, errs.Code(err), "%v", err)
		}
	})
}

func FuzzArchive(f *testing.F) {
	img := imagetest.Image{Names: []string{"a"}, Layers: []imagetest.Layer{imagetest.Gzip(imagetest.Tar(f, reg("a", "x")))}}
	f.Add(imagetest.OCIArchive(f, img))
	f.Add(imagetest.DockerArchive(f, img))
	f.Add(gzipped(f, imagetest.DockerArchive(f, img)))
	s, err := Open(Config{Dir: f.TempDir(), Limits: Limits{LayerSize: 1 << 20, LayerEntries: 1000, BlobSize: 1 << 20}})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, s.Close()) })
	f.Fuzz(func(t *testing.T, data []byte) {
		images, err := load(t, s, data)
		if err != nil {
			require.NotEmpty(t, errs.Code(err), "%v", err)
			return
		}
		require.NotEmpty(t, images)
	})
}

// Values that the records hold keep their form: other versions of the library read them.
func TestRecordFormIsStable(t *testing.T) {
	id := digest.FromString("x")
	data, err := json.Marshal(record{ID: id, Loaded: time.Unix(0, 0).UTC(), Layers: []layerRecord{{DiffID: id, Digest: id, Size: 1, MediaType: "m"}}})
	require.NoError(t, err)
	for _, key := range []string{`"id"`, `"manifest"`, `"config"`, `"platform"`, `"layers"`, `"loaded"`, `"diff_id"`, `"media_type"`} {
		require.Contains(t, string(data), key)
	}
	require.Equal(t, "l"+serial(id)[1:], serial(id))
	require.Len(t, serial(id), 20)
	require.NotErrorIs(t, fs.ErrNotExist, errs.ErrNotFound)
}
