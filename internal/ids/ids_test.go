package ids

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestFind(t *testing.T) {
	long := strings.Repeat("ab", 32)
	all := []string{"1234", "1299", long, "long" + strings.Repeat("x", 60) + "1", "long" + strings.Repeat("x", 60) + "2"}
	for i := range 20 {
		all = append(all, fmt.Sprintf("many%02d", i))
	}
	for ref, want := range map[string]string{"1234": "1234", "123": "1234", "a": long, long: long} {
		got, err := Find("thing", ref, slices.Values(all))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, ref := range []string{"", "none", "12345", long + "x"} {
		_, err := Find("thing", ref, slices.Values(all))
		require.ErrorIs(t, err, errs.ErrNotFound, ref)
		require.ErrorContains(t, err, "thing")
	}
	for ref, text := range map[string]string{
		"12": "fits 1234, 1299", "long": "fits longxxxxxxxx, longxxxxxxxx", "many": "many07 and more",
	} {
		_, err := Find("thing", ref, slices.Values(all))
		require.ErrorIs(t, err, errs.ErrInvalid, ref)
		require.ErrorContains(t, err, text)
	}
}
