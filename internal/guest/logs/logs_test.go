package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var all = Query{Stdout: true, Stderr: true}

// collect returns the lines of a log, each with E or O for its stream before it.
func collect(t testing.TB, dir string, live *Log, q Query) (lines []string) {
	t.Helper()
	require.NoError(t, Read(t.Context(), dir, live, q, func(l Line) error {
		lines = append(lines, text(l))
		return nil
	}))
	return lines
}

func text(l Line) string {
	switch {
	case l.Lost > 0:
		return fmt.Sprint("lost ", l.Lost)
	case l.Stderr:
		return "E" + string(l.Text)
	}
	return "O" + string(l.Text)
}

// model makes lines of pieces as a reader should.
type model struct {
	part  [2]string
	lines []string
}

func (m *model) write(stderr bool, p string) {
	i, name := 0, "O"
	if stderr {
		i, name = 1, "E"
	}
	m.part[i] += p
	for m.part[i] != "" {
		n := min(MaxLine, len(m.part[i]))
		if j := strings.IndexByte(m.part[i][:n], '\n'); j >= 0 {
			n = j + 1
		} else if n < MaxLine {
			break
		}
		m.lines = append(m.lines, name+m.part[i][:n])
		m.part[i] = m.part[i][n:]
	}
}

func (m *model) all() []string {
	lines := append([]string(nil), m.lines...)
	for i, name := range []string{"O", "E"} {
		if m.part[i] != "" {
			lines = append(lines, name+m.part[i])
		}
	}
	return lines
}

func at(i int) time.Time { return time.Unix(1700000000, int64(i)*1000).UTC() }

func TestLogAgainstAModel(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		dir := filepath.Join(t.TempDir(), "log")
		var m model
		l := New(dir, Options{MaxSize: 1 << 30})
		for i := range 20 + rng.IntN(40) {
			n := []int{0, 1, 10, 1000, 20000, 70000}[rng.IntN(6)]
			p := make([]byte, rng.IntN(n+1))
			gap := 1 + rng.IntN([]int{3, 100, 50000}[rng.IntN(3)])
			for i := range p {
				p[i] = 'a' + byte(rng.IntN(26))
				if rng.IntN(gap) == 0 {
					p[i] = '\n'
				}
			}
			stderr := rng.IntN(3) == 0
			m.write(stderr, string(p))
			l.Write(stderr, at(i), p)
			if rng.IntN(20) == 0 && m.part == [2]string{} { // a process that is started again
				l.Close()
				l.Close()
				l = New(dir, Options{MaxSize: 1 << 30})
			}
		}
		for _, p := range []struct {
			stderr bool
			text   string
		}{{true, "\n"}, {false, "last words"}} {
			m.write(p.stderr, p.text)
			l.Write(p.stderr, at(1000), []byte(p.text))
		}
		want := m.all()
		require.Equal(t, want, collect(t, dir, l, all), seed)
		l.Close()
		require.Equal(t, want, collect(t, dir, nil, all), seed)
		for _, tail := range []int{1, 2, 3, 10, 100, len(want), len(want) + 1, 1 << 30} {
			q := all
			q.Tail = tail
			require.Equal(t, want[max(0, len(want)-tail):], collect(t, dir, nil, q), "seed %d, tail %d", seed, tail)
		}
		var out, tail []string
		for _, line := range want {
			if line[0] == 'O' {
				out = append(out, line)
			}
		}
		tail = out[max(0, len(out)-2):]
		require.Equal(t, out, collect(t, dir, nil, Query{Stdout: true}))
		require.Equal(t, tail, collect(t, dir, nil, Query{Stdout: true, Tail: 2}))
		require.Empty(t, collect(t, dir, nil, Query{Stdout: true, Tail: -1}))
	}
}

func TestSinceAndUntil(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, Options{})
	for i := range 100 {
		l.Write(i%2 == 1, at(i), []byte(fmt.Sprintln(i)))
	}
	q := all
	q.Since, q.Until = at(10), at(13)
	require.Equal(t, []string{"O10\n", "E11\n", "O12\n", "E13\n"}, collect(t, dir, l, q))
	q.Tail = 3
	require.Equal(t, []string{"E11\n", "O12\n", "E13\n"}, collect(t, dir, l, q))
	q.Stdout = false
	require.Equal(t, []string{"E11\n", "E13\n"}, collect(t, dir, l, q))
	q.Since = at(1000)
	require.Empty(t, collect(t, dir, l, q))
	l.Close()
}

func TestRotationBoundsTheLog(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, Options{MaxSize: 1, MaxFiles: 3})
	n := 0
	for n < 60000 {
		var p []byte
		for range 500 {
			p = fmt.Appendf(p, "line %d\n", n)
			n++
		}
		l.Write(false, at(n), p)
		list, err := files(dir)
		require.NoError(t, err)
		require.LessOrEqual(t, len(list), 3)
		for _, seq := range list {
			st, err := os.Stat(fileName(dir, seq))
			require.NoError(t, err)
			require.LessOrEqual(t, st.Size(), int64(MinSize))
		}
	}
	lines := collect(t, dir, l, all)
	require.Greater(t, len(lines), 10000)
	require.Equal(t, fmt.Sprintf("Oline %d\n", n-1), lines[len(lines)-1])
	for i := 2; i < len(lines); i++ {
		require.Equal(t, fmt.Sprintf("Oline %d\n", n-len(lines)+i), lines[i])
	}
	q := all
	q.Tail = 15000
	require.Equal(t, lines[len(lines)-15000:], collect(t, dir, l, q), "across files")
	l.Close()
}

func TestTornTailIsCutOff(t *testing.T) {
	for _, cut := range []int64{1, 5, 14, 16, 20} {
		dir := t.TempDir()
		l := New(dir, Options{})
		l.Write(false, at(1), []byte("first\n"))
		l.Write(false, at(2), []byte("second\n"))
		l.Close()
		st, err := os.Stat(fileName(dir, 1))
		require.NoError(t, err)
		require.NoError(t, os.Truncate(fileName(dir, 1), st.Size()-cut))
		require.Equal(t, []string{"Ofirst\n"}, collect(t, dir, nil, all))
		l = New(dir, Options{})
		require.Equal(t, []string{"Ofirst\n"}, collect(t, dir, l, all))
		l.Write(false, at(3), []byte("third\n"))
		require.Equal(t, []string{"Ofirst\n", "Othird\n"}, collect(t, dir, l, all))
		l.Close()
	}
}

func TestDamageCostsABlock(t *testing.T) {
	dir := t.TempDir()
	l := New(dir, Options{})
	for i := range 20000 {
		l.Write(false, at(i), []byte(fmt.Sprintln(i)))
	}
	l.Close()
	b, err := os.ReadFile(fileName(dir, 1))
	require.NoError(t, err)
	b[blockSize+100] ^= 1
	clear(b[5*blockSize : 5*blockSize+4096]) // a page that never reached the disk
	require.NoError(t, os.WriteFile(fileName(dir, 1), b, 0o600))
	lines := collect(t, dir, nil, all)
	require.Greater(t, len(lines), 20000-4000)
	require.Equal(t, "O19999\n", lines[len(lines)-1])
	require.Contains(t, strings.Join(lines[:10], ""), "O9\n")
}

func TestWhatCannotBeKeptIsCounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "container", "log")
	l := New(dir, Options{})
	l.Write(false, at(1), []byte("nowhere\n")) // the container's directory is not there
	l.Write(true, at(1), []byte("nowhere\n"))
	require.NoError(t, os.Mkdir(filepath.Dir(dir), 0o700))
	l.Write(false, at(2), []byte("here\n"))
	require.Equal(t, []string{"lost 16", "Ohere\n"}, collect(t, dir, l, all))
	require.NoError(t, l.f.Close()) // the disk takes no more
	l.Write(false, at(3), make([]byte, 100000))
	l.Close()
	require.Equal(t, []string{"lost 16", "Ohere\n"}, collect(t, dir, nil, all))
	l.Write(false, at(4), []byte("after the end\n"))
	require.Len(t, collect(t, dir, nil, all), 2)
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		l := New(dir, Options{MaxSize: 1, MaxFiles: 1000})
		l.Write(false, time.Now(), []byte("before\nhalf "))
		got := make(chan string, 100)
		done := make(chan error, 1)
		q := all
		q.Follow = true
		follow := func(ctx context.Context, q Query) {
			done <- Read(ctx, dir, l, q, func(l Line) error { got <- text(l); return nil })
		}
		go follow(t.Context(), q)
		synctest.Wait()
		require.Equal(t, "Obefore\n", <-got)
		l.Write(true, time.Now(), []byte("bad\n"))
		synctest.Wait()
		require.Equal(t, "Ebad\n", <-got)
		l.Write(false, time.Now(), []byte("line\nlast"))
		synctest.Wait()
		require.Equal(t, "Ohalf line\n", <-got)
		l.Close()
		require.NoError(t, <-done)
		require.Equal(t, "Olast", <-got)
		go follow(t.Context(), q) // of a closed one
		require.NoError(t, <-done)
		require.Len(t, got, 4)
	})
}

func TestFollowEndsWithItsContextAndAtUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(t.TempDir(), Options{})
		q := all
		q.Follow = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		none := func(Line) error { return errors.New("a line") }
		require.ErrorIs(t, Read(ctx, l.dir, l, q, none), context.DeadlineExceeded)
		q.Until = time.Now().Add(time.Hour)
		require.NoError(t, Read(t.Context(), l.dir, l, q, none))
		l.Close()
	})
}

// TestHammer has writers, rotation, readers and followers at once. Where no file is deleted a follower misses nothing.
func TestHammer(t *testing.T) {
	for _, files := range []int{2, 1000} {
		hammer(t, New(t.TempDir(), Options{MaxSize: 1, MaxFiles: files}), files == 1000)
	}
}

func hammer(t *testing.T, l *Log, whole bool) {
	const writes = 3000
	var wg, writers sync.WaitGroup
	for g := range 2 {
		writers.Go(func() {
			for i := range writes {
				l.Write(g == 1, time.Now(), []byte(fmt.Sprintf("%d %s\n", i, strings.Repeat("x", i%500))))
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			q := all
			q.Follow = true
			last, seen := [2]int{-1, -1}, 0
			err := Read(t.Context(), l.dir, l, q, func(line Line) error {
				var n int
				fmt.Sscan(string(line.Text), &n)
				i := 0
				if line.Stderr {
					i = 1
				}
				if n <= last[i] && bytes.Contains(line.Text, []byte(" ")) && whole {
					return fmt.Errorf("line %d after %d", n, last[i])
				}
				last[i] = n
				seen++
				return nil
			})
			if err != nil || whole && (seen != 2*writes || last != [2]int{writes - 1, writes - 1}) {
				t.Errorf("%d lines to %v, %v", seen, last, err)
			}
		})
		wg.Go(func() {
			for i := range 50 {
				q := all
				q.Tail = i
				if err := Read(t.Context(), l.dir, l, q, func(Line) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	l.Close()
	wg.Wait()
}

func TestReadOfNothing(t *testing.T) {
	require.Empty(t, collect(t, filepath.Join(t.TempDir(), "none"), nil, Query{Stdout: true, Tail: 5}))
	dir := t.TempDir()
	for _, name := range []string{"x", "1.log", "00000000.log", "99999999999.log", "0000000a.log"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	require.Empty(t, collect(t, dir, nil, all))
	l := New(dir, Options{})
	l.Write(false, at(1), []byte("x\n"))
	stop := errors.New("stop")
	require.ErrorIs(t, Read(t.Context(), dir, l, all, func(Line) error { return stop }), stop)
	l.Close()
}

// FuzzRead reads and continues what may be on a disk.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	l := New(dir, Options{})
	l.Write(false, at(1), []byte("one\ntwo\nthr"))
	l.Write(true, at(2), bytes.Repeat([]byte("x"), 300))
	l.Write(false, at(3), []byte("ee\n"))
	l.Close()
	b, err := os.ReadFile(fileName(dir, 1))
	require.NoError(f, err)
	f.Add(b, []byte{}, 0)
	f.Add(b[:100], b[50:], 2)
	f.Add([]byte{}, b[:len(b)-1], 1)
	f.Fuzz(func(t *testing.T, first, second []byte, tail int) {
		dir := t.TempDir()
		for i, b := range [][]byte{first, second} {
			require.NoError(t, os.WriteFile(fileName(dir, i+1), b, 0o600))
		}
		n := 0
		q := all
		q.Tail = tail
		require.NoError(t, Read(t.Context(), dir, nil, q, func(l Line) error {
			require.True(t, l.Lost > 0 || len(l.Text) > 0 || len(l.Text) <= MaxLine)
			n++
			return nil
		}))
		if tail > 0 {
			require.LessOrEqual(t, n, tail)
		}
		l := New(dir, Options{})
		l.Write(false, at(9), []byte("new\n"))
		q = Query{Stdout: true, Tail: 1}
		if lines := collect(t, dir, l, q); len(lines) != 1 || lines[0] != "Onew\n" {
			t.Fatalf("%d lines, %.100q", len(lines), lines)
		}
		l.Close()
	})
}
