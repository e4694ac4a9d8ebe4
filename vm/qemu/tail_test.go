package qemu

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTailBuffer(t *testing.T) {
	b := &tailBuffer{limit: 10}
	for _, s := range []string{"0123456789abc", "d", "", "\nef\x1b[0m"} {
		n, err := b.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
	}
	require.Equal(t, "bcd; ef", b.String())
}
