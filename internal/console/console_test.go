package console

import (
	"bytes"
	"fmt"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestConsoleKeepsLastLines(t *testing.T) {
	var tee bytes.Buffer
	c := &Log{Tee: &tee}
	for i := range 3 * MaxLines {
		fmt.Fprintf(c, "line %d\r\n\n", i)
	}
	fmt.Fprint(c, "unfin", "ished")
	lines := c.Tail(2)
	require.Equal(t, []string{fmt.Sprint("line ", 3*MaxLines-1), "unfinished"}, lines)
	require.Len(t, c.Tail(10*MaxLines), MaxLines+1)
	require.Contains(t, tee.String(), "line 0\r\n\n")
}

func TestConsoleIsBounded(t *testing.T) {
	c := &Log{}
	for range 1000 {
		c.Write(bytes.Repeat([]byte("x"), 100_000))
	}
	c.Write([]byte("\nafter\n"))
	lines := c.Tail(10)
	require.Len(t, lines, 2)
	require.Len(t, lines[0], lineSize)
	require.Equal(t, "after", lines[1])
}

func TestLastWordsEndWithThePanic(t *testing.T) {
	panics := 0
	c := &Log{OnPanic: func() { panics++ }}
	for i := range 50 {
		fmt.Fprintf(c, "boot %d\n", i)
	}
	fmt.Fprint(c, "somebody said: Kernel panic - not syncing: no\n")
	c.lines = c.lines[:50]
	fmt.Fprint(c, "[    1.5] Kernel panic - not sync")
	require.Zero(t, panics)
	fmt.Fprint(c, "ing: no init\n")
	require.Equal(t, 1, panics)
	for i := range 100 {
		fmt.Fprintf(c, "trace %d\n", i)
	}
	words := c.LastWords()
	require.Len(t, words, errorLines)
	require.Equal(t, "[    1.5] Kernel panic - not syncing: no init", words[errorLines-1])
	require.Equal(t, words[errorLines-1], c.PanicLine())
}

func FuzzSanitize(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[0m\ttab\x07\xff\x1b"))
	f.Add([]byte("\x1bc\x1b[?7l\x1b[2J"))
	f.Fuzz(func(t *testing.T, line []byte) {
		s := Sanitize(line)
		require.True(t, utf8.ValidString(s))
		for _, r := range s {
			require.True(t, unicode.IsPrint(r) || r == utf8.RuneError, "%q in %q", r, s)
		}
	})
}
