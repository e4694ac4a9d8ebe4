package qemu

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
	c := &console{tee: &tee}
	for i := range 3 * consoleLines {
		fmt.Fprintf(c, "line %d\r\n\n", i)
	}
	fmt.Fprint(c, "unfin", "ished")
	lines := c.tail(2)
	require.Equal(t, []string{fmt.Sprint("line ", 3*consoleLines-1), "unfinished"}, lines)
	require.Len(t, c.tail(10*consoleLines), consoleLines+1)
	require.Contains(t, tee.String(), "line 0\r\n\n")
}

func TestConsoleIsBounded(t *testing.T) {
	c := &console{}
	for range 1000 {
		c.Write(bytes.Repeat([]byte("x"), 100_000))
	}
	c.Write([]byte("\nafter\n"))
	lines := c.tail(10)
	require.Len(t, lines, 2)
	require.Len(t, lines[0], consoleLineSize)
	require.Equal(t, "after", lines[1])
}

func TestLastWordsEndWithThePanic(t *testing.T) {
	c := &console{}
	for i := range 50 {
		fmt.Fprintf(c, "boot %d\n", i)
	}
	fmt.Fprint(c, "Kernel panic - not syncing: no init\n")
	for i := range 100 {
		fmt.Fprintf(c, "trace %d\n", i)
	}
	words := c.lastWords()
	require.Len(t, words, errorLines)
	require.Equal(t, "Kernel panic - not syncing: no init", words[errorLines-1])
	require.Equal(t, words[errorLines-1], c.panicLine())
}

func TestTailBuffer(t *testing.T) {
	b := &tailBuffer{limit: 10}
	for _, s := range []string{"0123456789abc", "d", "", "\nef\x1b[0m"} {
		n, err := b.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
	}
	require.Equal(t, "bcd; ef", b.String())
}

func FuzzSanitize(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[0m\ttab\x07\xff\x1b"))
	f.Add([]byte("\x1bc\x1b[?7l\x1b[2J"))
	f.Fuzz(func(t *testing.T, line []byte) {
		s := sanitize(line)
		require.True(t, utf8.ValidString(s))
		for _, r := range s {
			require.True(t, unicode.IsPrint(r) || r == utf8.RuneError, "%q in %q", r, s)
		}
	})
}
