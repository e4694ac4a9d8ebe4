package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/ext4"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// layerTree builds a layer and returns what its image holds.
func layerTree(t *testing.T, s *Store, base string, src LayerSource) map[string]string {
	t.Helper()
	img, err := s.Build(t.Context(), BuildSpec{Base: base, Layers: []LayerSource{src}})
	require.NoError(t, err)
	disks, err := s.Layers(t.Context(), img)
	require.NoError(t, err)
	path := disks[len(disks)-1].Path
	requireClean(t, path)
	return listExt4(t, path)
}

func TestBuildFromScratch(t *testing.T) {
	s := openStore(t)
	host := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(host, []byte("\x7fELF..."), 0o600))
	spec := BuildSpec{
		Names: []string{"built:1"}, Author: "me",
		Layers: []LayerSource{
			{Files: map[string]LayerFile{
				"/app":      {Path: host},
				"bin/sh":    {Data: []byte("#!/app\n")},
				"etc/empty": {},
				"link":      {Link: "bin/sh"},
				"tmp":       {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
				"secret":    {Data: []byte("x"), Mode: 0o400, UID: 7, GID: 8},
			}, CreatedBy: "files"},
			{FS: fstest.MapFS{
				"a/b/page.html": {Data: []byte("<p>"), Mode: 0o444},
				"a/run":         {Data: []byte("#!/bin/sh\n"), Mode: 0o444},
				"l":             {Data: []byte("a"), Mode: fs.ModeSymlink | 0o777},
			}, Dir: "/srv/www"},
			{Tar: bytes.NewReader(imagetest.Tar(t, entry{Name: "late", File: file{Data: []byte("tar")}}))},
		},
		Change: func(c *ocispec.ImageConfig) { c.Entrypoint = []string{"/app"} },
	}
	img, err := s.Build(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, []string{"docker.io/library/built:1"}, img.Names)
	require.Equal(t, []string{"/app"}, img.Config.Entrypoint)
	require.True(t, img.Created.IsZero())
	require.Equal(t, "linux", img.Platform.OS)
	disks, err := s.Layers(t.Context(), img)
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"app": "file \x7fELF...", "bin": "dir 0755", "bin/sh": "file #!/app\n", "etc": "dir 0755", "etc/empty": "file ",
		"link": "link bin/sh", "tmp": "dir 1777", "secret": "file x",
	}, listExt4(t, disks[0].Path))
	require.Equal(t, map[string]string{
		"srv": "dir 0755", "srv/www": "dir 0755", "srv/www/a": "dir 0755", "srv/www/a/b": "dir 0755",
		"srv/www/a/b/page.html": "file <p>", "srv/www/a/run": "file #!/bin/sh\n", "srv/www/l": "link a",
	}, listExt4(t, disks[1].Path))
	modes := map[string]uint16{}
	walkExt4(t, disks[0].Path, func(name string, _ *ext4.Volume, n *ext4.Inode) {
		modes[name] = n.Mode & 0o7777
		if name == "secret" {
			require.Equal(t, []uint32{7, 8}, []uint32{n.UID, n.GID})
		}
		if name != "" { // nobody describes the root
			require.Zero(t, n.ModTime.Unix(), name)
		}
	})
	require.Equal(t, []uint16{0o755, 0o755, 0o644, 0o400}, []uint16{modes["app"], modes["bin/sh"], modes["etc/empty"], modes["secret"]})
	requireTidy(t, s)
}

// TestBuildIsReproducible builds the same in two stores and compares with digests that no host may change.
func TestBuildIsReproducible(t *testing.T) {
	spec := func() BuildSpec {
		return BuildSpec{
			Created: time.Date(2024, 2, 3, 4, 5, 6, 7, time.FixedZone("there", 3600)), Comment: "c",
			Layers: []LayerSource{{
				FS:      fstest.MapFS{"x/y": {Data: []byte("1"), ModTime: time.Now()}, "x/é": {Data: []byte("2")}},
				ModTime: time.Unix(1_600_000_000, 5), UID: 1, GID: 2,
				Header: func(h *tar.Header) error { h.PAXRecords = map[string]string{paxXattr + "user.k": "v"}; return nil },
			}},
			Change: func(c *ocispec.ImageConfig) { c.Labels = map[string]string{"b": "1", "a": "2"} },
		}
	}
	var ids []string
	for range 2 {
		s := openStore(t, func(c *Config) { c.Platform = ocispec.Platform{OS: "linux", Architecture: "amd64"} })
		img, err := s.Build(t.Context(), spec())
		require.NoError(t, err)
		ids = append(ids, img.ID.Encoded()[:12]+" "+img.Layers[0].DiffID.Encoded()[:12])
	}
	require.Equal(t, ids[0], ids[1])
	require.Equal(t, "519fe15011b1 d1314a52737e", ids[0], "a change here changes the digests that users have written down")
}

// TestBuildOnABase has directories that must stay as they are and links that must be followed.
func TestBuildOnABase(t *testing.T) {
	s := openStore(t)
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x09\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	lower := imagetest.Plain(imagetest.Tar(t,
		dir("usr"), dir("usr/bin"), sym("bin", "usr/bin"), sym("abs", "/bin"), sym("up", "usr/../../bin"), sym("loop", "loop"),
		entry{Name: "tmp", File: file{Type: tar.TypeDir, Mode: 0o1777}},
		entry{Name: "home", File: file{Type: tar.TypeDir, Mode: 0o750, Uid: 70000, Gid: 9,
			Xattrs: map[string]string{"user.x": "y", "system.posix_acl_default": acl}}},
		dir("gone"), dir("gone/sub"), dir("again"), sym("again/link", "/tmp"), reg("file", "1"), dir("was"),
	))
	upper := imagetest.Plain(imagetest.Tar(t, reg(".wh.gone", ""), dir("again"), reg("again/.wh..wh..opq", ""), reg(".wh.was", "")))
	_, err := load(t, s, imagetest.OCIArchive(t, imagetest.Image{Names: []string{"base:1"}, Layers: []imagetest.Layer{lower, upper}}))
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"usr": "dir 0755", "usr/bin": "dir 0755", "usr/bin/one": "file 1", "usr/bin/two": "file 2", "usr/bin/three": "file 3",
		"usr/bin/four": "file 4", "tmp": "dir 1777", "tmp/x": "file x", "gone": "dir 0755", "gone/sub": "dir 0755", "gone/sub/f": "file f",
		"again": "dir 0755", "again/link": "dir 0755", "again/link/f": "file f", "home": "dir 0750", "home/f": "file f",
	}, layerTree(t, s, "base:1", LayerSource{Files: map[string]LayerFile{
		"bin/one": {Data: []byte("1")}, "abs/two": {Data: []byte("2")}, "up/three": {Data: []byte("3")}, "usr/bin/four": {Data: []byte("4")},
		"tmp/x": {Data: []byte("x")}, "gone/sub/f": {Data: []byte("f")}, "again/link/f": {Data: []byte("f")}, "home/f": {Data: []byte("f")},
	}, UID: 5}))
	img, err := s.Build(t.Context(), BuildSpec{Base: "base:1", Layers: []LayerSource{{FS: fstest.MapFS{"home/f": {}, "bin/f": {}}, UID: 5}}})
	require.NoError(t, err)
	disks, err := s.Layers(t.Context(), img)
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"usr": "dir 0755", "usr/bin": "dir 0755", "usr/bin/f": "file ", "home": "dir 0750", "home/f": "file ",
	}, listExt4(t, disks[2].Path))
	walkExt4(t, disks[2].Path, func(name string, v *ext4.Volume, n *ext4.Inode) {
		if name != "home" {
			return
		}
		require.Equal(t, []uint32{70000, 9}, []uint32{n.UID, n.GID})
		attrs, err := v.Attrs(n)
		require.NoError(t, err)
		disk, ok := diskACL(acl)
		require.True(t, ok)
		require.Equal(t, map[string]string{"user.x": "y", "system.posix_acl_default": disk}, attrs)
	})
	for name, files := range map[string]map[string]LayerFile{
		"below a file": {"file/x": {}}, "a loop": {"loop/x": {}}, "the same by a link": {"bin/x": {}, "usr/bin/x": {}},
	} {
		_, err := s.Build(t.Context(), BuildSpec{Base: "base:1", Layers: []LayerSource{{Files: files}}})
		require.ErrorIs(t, err, errs.ErrInvalid, name)
	}
}

// growing is a file that is larger or smaller than it says.
type growing struct {
	fstest.MapFS
	content string
}

func (g growing) Open(name string) (fs.File, error) {
	f, err := g.MapFS.Open(name)
	if name == "f" {
		return wrongSize{File: f, r: bytes.NewReader([]byte(g.content))}, err
	}
	return f, err
}

type wrongSize struct {
	fs.File
	r io.Reader
}

func (w wrongSize) Read(p []byte) (int, error) { return w.r.Read(p) }

func TestBuildRefuses(t *testing.T) {
	s := openStore(t, func(c *Config) { c.Limits.LayerSize, c.Limits.LayerEntries, c.Limits.Layers = 1<<20, 20, 3 })
	one := func(src LayerSource) BuildSpec { return BuildSpec{Layers: []LayerSource{src}} }
	files := func(name string, f LayerFile) BuildSpec {
		return one(LayerSource{Files: map[string]LayerFile{name: f}})
	}
	many := fstest.MapFS{}
	for i := range 30 {
		many[string(rune('a'+i%26))+string(rune('a'+i/26))] = &fstest.MapFile{}
	}
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		spec BuildSpec
		want error
	}{
		"nothing":             {BuildSpec{}, errs.ErrInvalid},
		"no source":           {one(LayerSource{}), errs.ErrInvalid},
		"two sources":         {one(LayerSource{FS: many, Tar: bytes.NewReader(nil)}), errs.ErrInvalid},
		"tar with an owner":   {one(LayerSource{Tar: bytes.NewReader(nil), UID: 1}), errs.ErrInvalid},
		"no tar":              {one(LayerSource{Tar: bytes.NewReader([]byte("this is no archive, though it is long enough to be taken for one"))}), errs.ErrCorrupt},
		"name":                {BuildSpec{Names: []string{"A B"}, Layers: one(LayerSource{FS: fstest.MapFS{}}).Layers}, errs.ErrInvalid},
		"name with a digest":  {BuildSpec{Names: []string{"a@sha256:" + string(bytes.Repeat([]byte("0"), 64))}}, errs.ErrInvalid},
		"base":                {BuildSpec{Base: "none"}, errs.ErrNotFound},
		"layers":              {BuildSpec{Layers: make([]LayerSource, 4)}, errs.ErrInvalid},
		"leads out":           {files("../x", LayerFile{}), errs.ErrInvalid},
		"no name":             {files("/", LayerFile{}), errs.ErrInvalid},
		"Dir leads out":       {one(LayerSource{FS: many, Dir: "a/../.."}), errs.ErrInvalid},
		"same file twice":     {one(LayerSource{Files: map[string]LayerFile{"a": {}, "./a": {}}}), errs.ErrInvalid},
		"file and directory":  {one(LayerSource{Files: map[string]LayerFile{"a": {}, "a/b": {}}}), errs.ErrInvalid},
		"link and directory":  {one(LayerSource{Files: map[string]LayerFile{"a": {Link: "b"}, "a/b": {}}}), errs.ErrInvalid},
		"whiteout":            {files("x/.wh.y", LayerFile{}), errs.ErrInvalid},
		"device":              {files("x", LayerFile{Mode: fs.ModeDevice}), errs.ErrInvalid},
		"directory with data": {files("x", LayerFile{Mode: fs.ModeDir, Data: []byte("x")}), errs.ErrInvalid},
		"link with data":      {files("x", LayerFile{Link: "y", Path: "z"}), errs.ErrInvalid},
		"file on the host":    {files("x", LayerFile{Path: "/does/not/exist"}), fs.ErrNotExist},
		"directory as file":   {files("x", LayerFile{Path: t.TempDir()}), errs.ErrInvalid},
		"owner":               {files("x", LayerFile{UID: -1}), errs.ErrInvalid},
		"attribute":           {files("x", LayerFile{Xattrs: map[string]string{"user.a=b": "c"}}), errs.ErrInvalid},
		"fifo":                {one(LayerSource{FS: fstest.MapFS{"f": {Mode: fs.ModeNamedPipe}}}), errs.ErrInvalid},
		"too large":           {files("x", LayerFile{Data: make([]byte, 1<<20+1)}), errs.ErrInvalid},
		"too many":            {one(LayerSource{FS: many}), errs.ErrInvalid},
		"grows":               {one(LayerSource{FS: growing{fstest.MapFS{"f": {Data: []byte("12345")}}, "123456"}}), errs.ErrInvalid},
		"shrinks":             {one(LayerSource{FS: growing{fstest.MapFS{"f": {Data: []byte("12345")}}, "1234"}}), errs.ErrInvalid},
		"Header fails":        {one(LayerSource{FS: many, Header: func(*tar.Header) error { return boom }}), boom},
		"Header renames": {one(LayerSource{FS: many, Header: func(h *tar.Header) error {
			h.Name = "x"
			return nil
		}}), errs.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Build(t.Context(), tt.spec)
			require.ErrorIs(t, err, tt.want)
			images, err := s.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, images)
			requireTidy(t, s)
		})
	}
	why := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	spec := one(LayerSource{FS: many, Header: func(*tar.Header) error { cancel(why); return nil }})
	_, err := s.Build(ctx, spec)
	require.ErrorIs(t, err, why)
	requireTidy(t, s)
}
