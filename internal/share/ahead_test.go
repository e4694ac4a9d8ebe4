package share

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAskedGrows(t *testing.T) {
	now := time.Unix(1e9, 0)
	var h heat
	var dir asked
	var told []int
	for range 100 {
		if n := dir.note(now, &h); n > 0 {
			told = append(told, n)
		}
	}
	require.Equal(t, []int{128, 512, 2048, 8192, 8192, 8192}, told, "at 3, 6, 12 and so on")
	require.Equal(t, 1, h.dirs)

	now = now.Add(2 * validity)
	for range afterFirst - 1 {
		require.Zero(t, dir.note(now, &h), "one who asks for two files gets these")
	}
	require.Equal(t, 2048, dir.note(now, &h), "it is large, as was seen")
}

func TestAskedOfWhatWasRead(t *testing.T) {
	now := time.Unix(1e9, 0)
	var h heat
	dir := asked{reading: 1}
	for range 10 {
		require.Zero(t, dir.note(now, &h), "it is being read")
	}
	dir.reading = 0
	require.Equal(t, firstAhead, dir.note(now, &h))
	dir.size = 100
	for range 100 {
		require.Zero(t, dir.note(now, &h), "all of it was read")
	}
}

func TestAskedOfManyDirectories(t *testing.T) {
	now := time.Unix(1e9, 0)
	var h heat
	for range manyDirs {
		var dir asked
		for range afterFirst {
			dir.note(now, &h)
		}
	}
	var dir asked
	require.Equal(t, firstAhead, dir.note(now, &h), "with its first file")
	dir = asked{}
	require.Zero(t, dir.note(now.Add(time.Minute), &h), "of late")
}

func TestAskAgainAtOnce(t *testing.T) {
	now := time.Unix(1e9, 0)
	var h heat
	var dir asked
	var told time.Time
	for range 100 {
		require.Zero(t, h.ask(&told, &dir, now), "somebody writes the file and looks at it")
		now = now.Add(validity / 100)
	}
}
