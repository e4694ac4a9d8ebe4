package checkpoint

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const smaps = `557b3a0c0000-557b3a4c7000 r--p 00000000 fe:00 10166281                   /usr/bin/a program
Size:               4124 kB
VmFlags: rd mr mw me sd
7f8b08000000-7f8b0bfff000 rwxp 00000000 00:00 0 
Size:              65532 kB
VmFlags: rd wr ex mr mw me ac hg sd
7f8b0bfff000-7f8b0c000000 ---p 00000000 00:00 0 
VmFlags: mr mw me nh
7f8b0ffff000-7f8b10000000 rw-s 00002000 00:1f 12                         /memory (deleted)
7f8b50d16000-7f8b50d1a000 r--p 00000000 00:00 0                          [vvar]
7f8b50d1c000-7f8b50d1e000 r-xp 00000000 00:00 0                          [vdso]
`

func TestParseMaps(t *testing.T) {
	all, err := parseMaps(smaps)
	require.NoError(t, err)
	require.Equal(t, []mapping{
		{start: 0x557b3a0c0000, end: 0x557b3a4c7000, read: true, inode: 10166281, path: "/usr/bin/a program"},
		{start: 0x7f8b08000000, end: 0x7f8b0bfff000, read: true, write: true, exec: true, huge: true},
		{start: 0x7f8b0bfff000, end: 0x7f8b0c000000},
		{start: 0x7f8b0ffff000, end: 0x7f8b10000000, read: true, write: true, shared: true, offset: 0x2000, inode: 12, path: "/memory (deleted)"},
		{start: 0x7f8b50d16000, end: 0x7f8b50d1a000, read: true, path: "[vvar]"},
		{start: 0x7f8b50d1c000, end: 0x7f8b50d1e000, read: true, exec: true, path: "[vdso]"},
	}, all)
	for i, want := range []struct{ file, vdso bool }{{true, false}, {}, {}, {true, false}, {false, true}, {false, true}} {
		require.Equal(t, want.file, all[i].file(), i)
		require.Equal(t, want.vdso, all[i].vdso(), i)
	}
}

func TestParseMapsRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nonsense":   "hello\n",
		"no numbers": "x-y rw-p 00000000 00:00 0\n",
		"backwards":  "2000-1000 rw-p 00000000 00:00 0\n",
		"empty":      "1000-1000 rw-p 00000000 00:00 0\n",
		"no page":    "1001-2000 rw-p 00000000 00:00 0\n",
		"no offset":  "1000-2000 rw-p 00000001 00:00 0\n",
		"modes":      "1000-2000 rw- 00000000 00:00 0\n",
		"overlap":    "1000-3000 rw-p 00000000 00:00 0\n2000-4000 rw-p 00000000 00:00 0\n",
	} {
		_, err := parseMaps(text)
		require.ErrorIs(t, err, errs.ErrInvalid, name)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(smaps)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseMaps(text)
		if err != nil {
			return
		}
		end := uint64(0)
		for _, m := range all {
			require.True(t, m.start >= end && m.end > m.start && m.size()%pageSize == 0)
			end = m.end
		}
	})
}

func TestFreeSpan(t *testing.T) {
	const mb = 1 << 20
	for _, tc := range []struct {
		maps []mapping
		want uint64
	}{
		{nil, 2 * mb},
		{[]mapping{{start: 64 * mb, end: 65 * mb}}, 2 * mb},
		{[]mapping{{start: 4 * mb, end: 5 * mb}, {start: 1 << 40, end: 1<<40 + mb}}, 6 * mb},
		{[]mapping{{start: mb, end: 3 * mb}, {start: 19 * mb, end: 30*mb + pageSize}}, 32 * mb},
	} {
		require.Equal(t, tc.want, freeSpan(tc.maps, 16*mb))
	}
}

func TestSpans(t *testing.T) {
	const p = pageSize
	spans := []Range{{0, p}, {2 * p, 4 * p}, {4 * p, 5 * p}, {10 * p, 11 * p}}
	require.Equal(t, []Range{{0, p}, {2 * p, 5 * p}, {10 * p, 11 * p}}, join(spans, 0))
	require.Equal(t, []Range{{0, 5 * p}, {10 * p, 11 * p}}, join(spans, 1))
	require.Equal(t, []Range{{0, 11 * p}}, join(spans, 5))
	require.Empty(t, join(nil, 1))
	require.Equal(t, []Range{{3 * p, 4 * p}, {4 * p, 5 * p}, {10 * p, 11 * p}}, within(spans, []Range{{3 * p, 8 * p}, {9 * p, 20 * p}}))
	require.Empty(t, within(spans, nil))
}
