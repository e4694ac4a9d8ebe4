package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// display shows how far things are: as bars that move on a terminal, and as plain lines, one when a thing begins and one
// when it is done, elsewhere. A nil display shows nothing.
type display struct {
	w     io.Writer
	width func() int // of the terminal in columns; nil where w is none
	now   func() time.Time

	mu     sync.Mutex
	rows   []*row
	drawn  int // lines of the terminal that hold rows
	last   time.Time
	closed bool
}

type row struct {
	label       string
	done, total int64
	began       time.Time
	ended       time.Time // zero until it is complete
	failed      bool
	note        string // instead of how it ended and how long it took
}

// redrawEvery keeps a fast source from spending its time on the terminal.
const redrawEvery = 50 * time.Millisecond

// update says how far the thing with that label is. It is complete when done reaches a total that is known.
func (d *display) update(label string, done, total int64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	r := d.row(label)
	if !r.ended.IsZero() {
		return
	}
	r.done, r.total = done, total
	if total > 0 && done >= total {
		d.end(r, false)
		return
	}
	if d.width != nil && d.now().Sub(d.last) >= redrawEvery {
		d.draw()
	}
}

// complete says that the thing with that label is over.
func (d *display) complete(label string, failed bool) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.row(label); !d.closed && r.ended.IsZero() {
		d.end(r, failed)
	}
}

// settle says that there is nothing to do for the thing with that label, and why.
func (d *display) settle(label, why string) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.row(label); !d.closed && r.ended.IsZero() {
		r.note = why
		d.end(r, false)
	}
}

func (d *display) row(label string) *row {
	for _, r := range d.rows {
		if r.label == label {
			return r
		}
	}
	r := &row{label: label, began: d.now()}
	d.rows = append(d.rows, r)
	if d.width == nil && !d.closed {
		fmt.Fprintf(d.w, "%s ...\n", label)
	}
	return r
}

func (d *display) end(r *row, failed bool) {
	r.ended, r.failed = d.now(), failed
	if d.width != nil {
		d.draw()
		return
	}
	fmt.Fprintf(d.w, "%s: %s\n", r.label, r.outcome())
}

// close shows the last state; what comes after it is not shown. clear takes the rows off a terminal.
func (d *display) close(clear bool) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	if d.width == nil {
		return
	}
	if clear {
		d.rows = nil
	}
	d.draw()
}

// draw writes all rows over those drawn before.
func (d *display) draw() {
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", d.drawn)
	}
	width := d.width()
	for _, r := range d.rows {
		b.WriteString(r.line(width - 1))
		b.WriteByte('\n')
	}
	d.drawn, d.last = len(d.rows), d.now()
	io.WriteString(d.w, b.String())
}

func (r *row) outcome() string {
	if r.note != "" {
		return r.note
	}
	verb := "done"
	if r.failed {
		verb = "failed"
	}
	took := r.ended.Sub(r.began).Round(10 * time.Millisecond).Seconds()
	if r.total > 1 {
		return fmt.Sprintf("%s, %s in %.1f s", verb, bytesText(r.total), took)
	}
	return fmt.Sprintf("%s in %.1f s", verb, took)
}

// line returns the row as at most width columns.
func (r *row) line(width int) string {
	label := fmt.Sprintf("%-20s ", r.label)
	var text string
	switch {
	case !r.ended.IsZero():
		text = label + r.outcome()
	case r.total > 1:
		amount := fmt.Sprintf(" %s / %s", bytesText(r.done), bytesText(r.total))
		text = label + bar(r.done, r.total, min(40, width-utf8.RuneCountInString(label)-len(amount))) + amount
	case r.done > 0:
		text = label + bytesText(r.done)
	default:
		text = label + "..."
	}
	if runes := []rune(text); len(runes) > max(width, 0) {
		text = string(runes[:max(width, 0)])
	}
	return text
}

// bar returns a bar of that many columns, or nothing where they are too few.
func bar(done, total int64, columns int) string {
	inner := columns - 2
	if inner < 5 {
		return ""
	}
	n := int(float64(inner) * min(1, float64(max(0, done))/float64(total)))
	return "[" + strings.Repeat("=", n) + strings.Repeat(" ", inner-n) + "]"
}

// bytesText returns a size for people.
func bytesText(n int64) string {
	units := []string{"kB", "MB", "GB", "TB", "PB", "EB"}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.5 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}
