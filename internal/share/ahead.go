package share

import (
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// validity is how long a guest may believe what it was told of a file, so that it sees changes on the host within a second.
const validity = 900 * time.Millisecond

// The bounds of reading ahead. A directory gives the guest some 25 entries for each question.
const (
	firstAhead = 128 // entries that are read when it begins
	maxAhead   = 8192
	afterFirst = 3 // questions after which it begins
	manyDirs   = 2 // directories that were read of late, after which one question is enough
)

// asked counts what a guest asks of the files in one directory, one after the other. It would learn of them much faster by
// reading the directory, so it is told to, to an extent that grows with its questions. Its zero value is ready.
type asked struct {
	since   time.Time // when the counting began
	count   int
	next    int // the count at which the guest is told again
	entries int // how many entries it is told to read then
	last    int // how many it was told to read last
	reading int // how often the directory is open
	size    int // entries of the directory when it was read last
}

// heat tells whether a guest goes through many directories.
type heat struct {
	since time.Time
	dirs  int
}

// ask notes that the guest was told of a file because it has asked, and returns how many entries of the file's directory it
// should read instead. Who asks again at once does so because of what was changed, and would do so again. told is when it
// has asked for the file last.
func (h *heat) ask(told *time.Time, dir *asked, now time.Time) int {
	before := *told
	*told = now
	if now.Sub(before) < validity {
		return 0
	}
	return dir.note(now, h)
}

// note counts a question and returns how many entries the guest should read; 0 is none.
func (a *asked) note(now time.Time, all *heat) int {
	if a.next == 0 || now.Sub(a.since) > validity {
		a.begin(now, all)
	}
	a.count++
	if a.count < a.next || a.reading > 0 || a.last > 0 && a.size > 0 && a.last >= a.size {
		return 0
	}
	if a.last == 0 {
		all.dirs++
	}
	a.last, a.next = a.entries, 2*a.count
	a.entries = min(4*a.entries, maxAhead)
	return a.last
}

// begin begins the counting anew.
func (a *asked) begin(now time.Time, all *heat) {
	if now.Sub(all.since) > validity {
		*all = heat{since: now, dirs: all.dirs / 4}
	}
	next := afterFirst
	if all.dirs >= manyDirs {
		next = 1
	}
	*a = asked{since: now, next: next, entries: max(firstAhead, a.last/4), reading: a.reading}
}

// aheadFunc tells the guest to read a directory ahead. It may be called from many goroutines.
type aheadFunc func(api.ReadAhead)
