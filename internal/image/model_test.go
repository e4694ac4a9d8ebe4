package image

import (
	"archive/tar"
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/stretchr/testify/require"
)

// FuzzFilter makes archives of few names, so that they get into each other's way, and holds the two ways through the
// filter against each other: what one pass makes, two passes make too.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{0, 1, 2, 1, 9, 3, 2, 4, 5, 3, 6, 7, 4, 8, 9})
	f.Add([]byte{1, 1, 0, 0, 6, 0, 2, 7, 1, 3, 1, 6})
	f.Fuzz(func(t *testing.T, data []byte) {
		tarball := imagetest.Tar(t, randomEntries(data)...)
		l := Limits{LayerSize: 1 << 20, LayerEntries: 100}.withDefaults()
		p, planErr := newFilter(l).plan(tar.NewReader(bytes.NewReader(tarball)))
		var once bytes.Buffer
		onceErr := newFilter(l).stream(tar.NewReader(bytes.NewReader(tarball)), tar.NewWriter(&once))
		if onceErr != nil && errs.Code(onceErr) != "" {
			require.Error(t, planErr, "one pass says: %v", onceErr)
		}
		path, err := convertTar(t, tarball, l)
		if planErr != nil {
			require.Error(t, err)
			require.NotEmpty(t, errs.Code(planErr), "%v", planErr)
			return
		}
		require.NoError(t, err)
		require.FileExists(t, path)
		if onceErr != nil {
			return
		}
		var twice bytes.Buffer
		require.NoError(t, p.write(newFilter(l), tar.NewReader(bytes.NewReader(tarball)), tar.NewWriter(&twice)))
		require.Equal(t, effect(t, &twice), effect(t, &once))
	})
}

// randomEntries turns each three bytes into an entry: kind, name, content or target.
func randomEntries(data []byte) []entry {
	names := []string{"a", "b", "a/b", "a/c", "b/a", "a/b/c", "./a/", "/b", "c", "d/../c", "d/e/f", ".", "l/a", "l"}
	targets := []string{"a", "b", "../b", "/a/b", ".", "a/../../c", "l", "nowhere", "a/c", "c"}
	var out []entry
	for ; len(data) >= 3 && len(out) < 40; data = data[3:] {
		name, target := names[int(data[1])%len(names)], targets[int(data[2])%len(targets)]
		clean := strings.Trim(name, "/")
		switch data[0] % 7 {
		case 0:
			out = append(out, dir(name))
		case 1:
			out = append(out, reg(clean, string(data[2:3])))
		case 2:
			out = append(out, sym(clean, target))
		case 3:
			out = append(out, hard(clean, target))
		case 4:
			d, b := filepath.Split(clean)
			out = append(out, reg(d+".wh."+b, ""))
		case 5:
			out = append(out, reg(clean+"/.wh..wh..opq", ""))
		case 6:
			out = append(out, entry{Name: name, File: file{Type: tar.TypeDir, Mode: 0o700, Xattrs: map[string]string{"user.x": string(data[2:3])}}})
		}
	}
	return out
}

// effect tells what an archive without surprises comes to, whiteouts in overlayfs's form.
func effect(t *testing.T, r io.Reader) map[string]string {
	out := map[string]string{".": "dir "} // the root is there without an entry
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		require.NoError(t, err)
		data, err := io.ReadAll(tr)
		require.NoError(t, err)
		name := strings.Trim(h.Name, "/")
		hidden, opaque, marker := whiteout(name)
		parent := filepath.Dir(name)
		switch {
		case opaque:
			out[parent] = strings.TrimSuffix(out[parent], " opaque") + " opaque"
		case marker:
			out[filepath.Join(parent, hidden)] = "whiteout"
		case h.Typeflag == tar.TypeChar:
			out[name] = "whiteout"
		case h.Typeflag == tar.TypeLink:
			out[name] = out[strings.Trim(h.Linkname, "/")]
		case h.Typeflag == tar.TypeDir:
			was := ""
			if strings.Contains(out[name], "opaque") || h.PAXRecords[paxXattr+overlayOpaque] != "" {
				was = " opaque"
			}
			out[name] = "dir " + h.PAXRecords[paxXattr+"user.x"] + was
		default:
			out[name] = string(h.Typeflag) + h.Linkname + string(data)
		}
	}
}
