package deb_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/deb"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func files(data []byte) (map[string]string, error) {
	got := map[string]string{}
	err := deb.Walk(bytes.NewReader(data), func(name string, size int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && int64(len(b)) != size {
			return errors.New("size is wrong")
		}
		got[name] = string(b)
		return err
	})
	return got, err
}

func TestPackagesOfEachCompressionAreRead(t *testing.T) {
	content := []fixture.File{{Name: "./boot/vmlinuz-1", Body: []byte("kernel")}, {Name: "usr/x", Body: nil}}
	for _, f := range []codec.Format{codec.None, codec.Gzip, codec.XZ, codec.Zstd} {
		got, err := files(fixture.Deb(f, content))
		require.NoError(t, err)
		require.Equal(t, map[string]string{"boot/vmlinuz-1": "kernel", "usr/x": ""}, got)
	}
}

func TestOnlyRegularFilesAreVisited(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir},
		{Name: "./link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "./hard", Typeflag: tar.TypeLink, Linkname: "../x"},
		{Name: "./null", Typeflag: tar.TypeChar},
	} {
		require.NoError(t, w.WriteHeader(&h))
	}
	require.NoError(t, w.Close())
	got, err := files(fixture.Ar([]fixture.File{{Name: "data.tar", Body: b.Bytes()}}))
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestBadPackagesAreCorrupt(t *testing.T) {
	good := fixture.Deb(codec.XZ, []fixture.File{{Name: "a", Body: bytes.Repeat([]byte("abc"), 1000)}})
	header := func(size string) []byte {
		return []byte("!<arch>\ndata.tar        0           0     0     100644  " + size + "`\n")
	}
	for name, data := range map[string][]byte{
		"empty":             nil,
		"other file":        []byte("PK\x03\x04 and more"),
		"no data archive":   fixture.Ar([]fixture.File{{Name: "debian-binary", Body: []byte("2.0\n")}}),
		"other version":     fixture.Ar([]fixture.File{{Name: "debian-binary", Body: []byte("3.0\n")}}),
		"cut":               good[:len(good)-60],
		"negative size":     header("-1        "),
		"no number":         header("lots      "),
		"huge size":         header("9999999999"),
		"member behind":     fixture.Ar([]fixture.File{{Name: "odd", Body: []byte("1")}})[:69],
		"absolute name":     fixture.Deb(codec.None, []fixture.File{{Name: "/etc/passwd", Body: nil}}),
		"name with dot dot": fixture.Deb(codec.None, []fixture.File{{Name: "./lib/../../x", Body: nil}}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := files(data)
			if name == "huge size" {
				require.NoError(t, err, "an empty tar is one that ends at once")
				return
			}
			require.ErrorIs(t, err, errs.ErrCorrupt)
		})
	}
}

func TestErrorOfTheVisitorEndsTheWalk(t *testing.T) {
	mine := errors.New("mine")
	calls := 0
	data := fixture.Deb(codec.Gzip, []fixture.File{{Name: "a", Body: nil}, {Name: "b", Body: nil}})
	err := deb.Walk(bytes.NewReader(data), func(string, int64, io.Reader) error { calls++; return mine })
	require.Equal(t, mine, err)
	require.Equal(t, 1, calls)
}

func FuzzWalk(f *testing.F) {
	for _, c := range []codec.Format{codec.None, codec.Gzip, codec.Zstd} {
		f.Add(fixture.Deb(c, []fixture.File{{Name: "./boot/x", Body: []byte("1")}, {Name: "b", Body: []byte("2")}}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := files(data)
		for name := range got {
			require.True(t, fs.ValidPath(name), "%q %v", name, err)
		}
	})
}
