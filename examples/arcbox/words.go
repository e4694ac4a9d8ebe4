package main

import (
	"errors"
	"strings"
)

var errQuote = errors.New("a quote is not closed")

// words splits a line as a POSIX shell does, with quotes, backslashes and comments, and without anything that expands.
func words(line string) ([]string, error) {
	var list []string
	var word strings.Builder
	in := false    // a word has begun
	var quote byte // that is open; 0 is none
	for i := 0; i < len(line); i++ {
		b := line[i]
		switch {
		case quote == '\'' && b != quote, quote == '"' && b != quote && b != '\\':
			word.WriteByte(b)
		case quote != 0 && b == quote:
			quote = 0
		case b == '\\':
			i++
			if i == len(line) {
				return nil, errors.New("nothing follows the last backslash")
			}
			if quote == '"' && !strings.ContainsRune("\"\\$`", rune(line[i])) {
				word.WriteByte(b)
			}
			word.WriteByte(line[i])
			in = true
		case b == '\'' || b == '"':
			quote, in = b, true
		case b == ' ' || b == '\t':
			if in {
				list = append(list, word.String())
				word.Reset()
			}
			in = false
		case b == '#' && !in:
			return list, nil
		default:
			word.WriteByte(b)
			in = true
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	if in {
		list = append(list, word.String())
	}
	return list, nil
}
