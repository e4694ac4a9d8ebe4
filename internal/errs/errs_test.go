package errs

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSentinelsKeepIdentityAcrossTheWire(t *testing.T) {
	for _, c := range codes {
		t.Run(c.code, func(t *testing.T) {
			wire, err := json.Marshal(ToRemote(fmt.Errorf("open x: %w", c.err)))
			require.NoError(t, err)
			var back Remote
			require.NoError(t, json.Unmarshal(wire, &back))
			require.ErrorIs(t, &back, c.err)
			require.Equal(t, "open x: "+c.err.Error(), back.Error())
			for _, other := range codes {
				if other.code != c.code {
					require.NotErrorIs(t, &back, other.err)
				}
			}
		})
	}
}

func TestUnknownErrorsHaveNoSentinel(t *testing.T) {
	r := ToRemote(errors.New("boom"))
	require.Empty(t, r.Code)
	require.NoError(t, errors.Unwrap(r))
	require.NoError(t, errors.Unwrap(&Remote{Code: "from-the-future"}))
}
