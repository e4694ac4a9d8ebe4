package cpio_test

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/cpio"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// list reads an archive back by the format's description, apart from the writer.
func list(t *testing.T, b []byte) []string {
	t.Helper()
	require.Zero(t, len(b)%512)
	var out []string
	for at := 0; ; {
		require.Equal(t, "070701", string(b[at:at+6]))
		field := func(i int) int {
			n, err := strconv.ParseInt(string(b[at+6+8*i:at+14+8*i]), 16, 64)
			require.NoError(t, err)
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(b[at+110 : at+110+nameSize-1])
		require.Zero(t, b[at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return out
		}
		out = append(out, strconv.FormatInt(int64(mode), 8)+" "+name+" "+string(b[data:data+size]))
		at = (data + size + 3) &^ 3
	}
}

func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	require.NoError(t, w.Dir("dev"))
	require.NoError(t, w.Char("dev/console", 5, 1))
	require.NoError(t, w.File("a/b/c", 0o755, 5, strings.NewReader("hello")))
	require.NoError(t, w.Dir("a/b"))
	require.NoError(t, w.File("a/d", 0o644, 0, nil))
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestArchiveHasParentsFirst(t *testing.T) {
	require.Equal(t, []string{
		"40755 dev ", "20600 dev/console ", "40755 a ", "40755 a/b ", "100755 a/b/c hello", "100644 a/d ",
	}, list(t, archive(t)))
}

func TestArchiveIsReproducible(t *testing.T) {
	require.True(t, bytes.Equal(archive(t), archive(t)))
}

func TestBadCallsAreErrors(t *testing.T) {
	for name, call := range map[string]func(*cpio.Writer) error{
		"absolute": func(w *cpio.Writer) error { return w.Dir("/etc") },
		"dot dot":  func(w *cpio.Writer) error { return w.File("../x", 0, 0, nil) },
		"empty":    func(w *cpio.Writer) error { return w.Char("", 1, 1) },
		"zero":     func(w *cpio.Writer) error { return w.Dir("a\x00b") },
		"size":     func(w *cpio.Writer) error { return w.File("a", 0, 1<<32, nil) },
		"twice": func(w *cpio.Writer) error {
			return errors.Join(w.File("a", 0, 0, nil), w.File("a", 0, 0, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := cpio.NewWriter(io.Discard)
			err := call(w)
			require.Error(t, err)
			require.True(t, errors.Is(err, errs.ErrInvalid) || errors.Is(err, errs.ErrExists))
			require.Error(t, w.Close(), "the first error stays")
		})
	}
}

func TestShortContentIsAnError(t *testing.T) {
	w := cpio.NewWriter(io.Discard)
	require.ErrorIs(t, w.File("a", 0o644, 10, strings.NewReader("short")), io.EOF)
	require.ErrorIs(t, w.Dir("b"), io.EOF)
}
