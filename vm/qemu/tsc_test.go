package qemu

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRateOfTheTimeStampCounter(t *testing.T) {
	a, b := newTSCRate().kHz(), newTSCRate().kHz()
	require.Greater(t, a, 100_000)
	require.Less(t, a, 10_000_000)
	require.Less(t, math.Abs(float64(a-b))/float64(a), 0.01, "%d and %d kHz", a, b)
	if !hasTSC {
		require.Equal(t, nanosecondRate, a)
	}
}

func TestCoarseRate(t *testing.T) {
	for in, want := range map[int]int{2_596_140: 2_600_000, 2_595_000: 2_600_000, 2_594_999: 2_590_000, 1_000_000: 1_000_000} {
		require.Equal(t, want, coarse(in))
	}
}
