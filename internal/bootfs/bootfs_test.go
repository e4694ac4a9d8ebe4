package bootfs

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestFormatAndParseAreInverse(t *testing.T) {
	mods := []Module{
		{Early, "/lib/modules/6.1/kernel/virtio.ko"},
		{Late, "/lib/modules/6.1/kernel/with space.ko"},
		{Demand, "/lib/modules/6.1/loop.ko"},
	}
	text, err := Format(mods)
	require.NoError(t, err)
	require.Equal(t, "early /lib/modules/6.1/kernel/virtio.ko\n"+
		"late /lib/modules/6.1/kernel/with space.ko\n"+
		"demand /lib/modules/6.1/loop.ko\n", string(text))
	back, err := Parse(text)
	require.NoError(t, err)
	require.Equal(t, mods, back)
	require.Equal(t, mods[1:2], Pick(back, Late))
}

func TestParseSkipsCommentsAndEmptyLines(t *testing.T) {
	mods, err := Parse([]byte("# modules\n\nlate /lib/modules/x.ko"))
	require.NoError(t, err)
	require.Equal(t, []Module{{Late, "/lib/modules/x.ko"}}, mods)
	mods, err = Parse(nil)
	require.NoError(t, err)
	require.Empty(t, mods)
}

func TestBadListsAreInvalid(t *testing.T) {
	for name, text := range map[string]string{
		"unknown stage":  "soon /lib/modules/x.ko",
		"no path":        "early",
		"relative":       "early lib/modules/x.ko",
		"dot dot":        "early /lib/modules/../x.ko",
		"outside":        "early /etc/x.ko",
		"the directory":  "early /lib/modules",
		"carriage":       "early /lib/modules/x.ko\r",
		"leading blanks": " early /lib/modules/x.ko",
		"too long":       strings.Repeat("#", MaxList+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(text))
			require.ErrorIs(t, err, errs.ErrInvalid)
		})
	}
	_, err := Format([]Module{{Early, "/lib/modules/a\nlate /lib/modules/b"}})
	require.ErrorIs(t, err, errs.ErrInvalid)
	_, err = Format([]Module{{Stage: Early, Path: "/lib/modules/" + strings.Repeat("x", MaxList)}})
	require.ErrorIs(t, err, errs.ErrInvalid)
}

func FuzzParse(f *testing.F) {
	f.Add("early /lib/modules/6.1/virtio.ko\n# c\n\nlate /lib/modules/a b.ko\n")
	f.Fuzz(func(t *testing.T, text string) {
		mods, err := Parse([]byte(text))
		if err != nil {
			return
		}
		out, err := Format(mods)
		require.NoError(t, err)
		again, err := Parse(out)
		require.NoError(t, err)
		require.Equal(t, mods, again)
	})
}
