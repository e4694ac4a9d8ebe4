package container

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMountsThatCannotBeMade(t *testing.T) {
	for _, p := range []MountPoint{
		{Type: MountBind, Path: "/", Target: "/x"}, {Type: MountSocket, Path: "/s", Target: "/x"},
	} {
		_, _, err := openMounts(t.Context(), &fakeMachine{}, []MountPoint{{Type: MountVolume}, p})
		require.ErrorIs(t, err, errs.ErrUnsupported, p.Type)
	}
	for _, p := range []MountPoint{{Type: MountSocket, Target: "/x"}, {Type: MountFS, Target: "/x"}} {
		_, _, err := openMounts(t.Context(), &fakeMachine{}, []MountPoint{p})
		require.ErrorIs(t, err, errs.ErrUnavailable, "its value is gone")
	}
}
