package qemu

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

func TestBootAndEcho(t *testing.T) {
	i := startT(t, testSpec(t))
	c, err := i.Dial(testContext(t), guest.PortEcho)
	require.NoError(t, err)
	_, err = io.WriteString(c, "hello")
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
}
