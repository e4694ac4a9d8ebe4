package main

import (
	"bytes"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// clock is time that moves when it is told to.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func TestPlainLines(t *testing.T) {
	var b bytes.Buffer
	c := &clock{}
	d := &display{w: &b, now: c.now}
	d.update("find kernel", 0, 0)
	c.at = c.at.Add(300 * time.Millisecond)
	d.update("find kernel", 1, 1)
	d.update("find kernel", 1, 1) // again
	d.update("layer", 0, 0)
	d.update("layer", 10, 5_000_000)
	c.at = c.at.Add(2 * time.Second)
	d.update("layer", 5_000_000, 5_000_000)
	d.update("boot", 0, 0)
	d.complete("boot", true)
	d.complete("boot", false)
	d.close(true)
	d.update("late", 0, 0)
	require.Equal(t, `find kernel ...
find kernel: done in 0.3 s
layer ...
layer: done, 5.0 MB in 2.0 s
boot ...
boot: failed in 0.0 s
`, b.String())
}

// screen is a terminal that knows the two sequences that display uses.
type screen struct{ lines []string }

func (s *screen) Write(p []byte) (int, error) {
	text := string(p)
	if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
		var n int
		for rest[0] != 'A' {
			n = n*10 + int(rest[0]-'0')
			rest = rest[1:]
		}
		text = strings.TrimPrefix(rest, "A\r\x1b[J")
		s.lines = s.lines[:len(s.lines)-n]
	}
	for line := range strings.Lines(text) {
		s.lines = append(s.lines, strings.TrimSuffix(line, "\n"))
	}
	return len(p), nil
}

func TestBarsOnATerminal(t *testing.T) {
	c, s := &clock{at: time.Unix(1, 0)}, &screen{lines: []string{"$ arcbox pull x"}}
	d := &display{w: s, width: func() int { return 60 }, now: c.now}
	d.update("layer one", 0, 2_000_000)
	c.at = c.at.Add(time.Second)
	d.update("layer two", 0, 0)
	c.at = c.at.Add(time.Second)
	d.update("layer one", 1_000_000, 2_000_000)
	require.Equal(t, []string{
		"$ arcbox pull x",
		"layer one            [==========          ] 1.0 MB / 2.0 MB",
		"layer two            ...",
	}, s.lines)
	d.update("layer one", 1_000_001, 2_000_000) // too soon to be drawn
	d.update("layer one", 2_000_000, 2_000_000)
	d.update("layer two", 500, 0)
	c.at = c.at.Add(time.Second)
	d.update("layer two", 501, 0)
	require.Equal(t, []string{
		"$ arcbox pull x",
		"layer one            done, 2.0 MB in 2.0 s",
		"layer two            501 B",
	}, s.lines)
	d.close(true)
	require.Equal(t, []string{"$ arcbox pull x"}, s.lines)
}

func TestLinesFitEveryWidth(t *testing.T) {
	rows := []*row{
		{label: "layer sha256:0123456789ab", done: 5, total: 1000},
		{label: strings.Repeat("ü", 300), ended: time.Unix(1, 0)},
		{label: "x", done: math.MaxInt64, total: 7},
		{label: "x", done: -5, total: math.MaxInt64},
	}
	for width := -2; width < 200; width++ {
		for _, r := range rows {
			require.LessOrEqual(t, len([]rune(r.line(width))), max(width, 0))
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB",
		12_345_678: "12 MB", math.MaxInt64: "9.2 EB",
	} {
		require.Equal(t, want, bytesText(n), n)
	}
}

func TestNilDisplayShowsNothing(*testing.T) {
	var d *display
	d.update("x", 0, 1)
	d.complete("x", false)
	d.close(true)
}

func TestDisplayHammer(t *testing.T) {
	d := &display{w: &screen{}, width: func() int { return 80 }, now: time.Now}
	var wg sync.WaitGroup
	for _, label := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			for i := range int64(500) {
				d.update(label, i, 499)
			}
		})
	}
	wg.Wait()
	d.close(false)
}
