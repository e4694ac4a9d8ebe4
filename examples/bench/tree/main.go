// Tree works on a directory as programs do that are run in a container, and prints what it took: a line of "name value" for
// each of stat_us (a stat of a file that was looked at before), stat_cold_us (of one that nobody has looked at, in a directory
// of 500), miss_us (of one that is not there, which is one question to the host), walk_10000_ms (a walk of the directory tree with a stat of every
// file, as git status does), write_mb_s and read_mb_s (of a file of 64 MiB).
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const size = 64 << 20

func run(dir string) error {
	began, n := time.Now(), 0
	err := filepath.WalkDir(filepath.Join(dir, "tree"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
			_, err = d.Info()
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("walk_10000_ms %.1f\n", float64(time.Since(began).Microseconds())/1000)
	if err := stats("stat_cold_us", dir+"/flat/", nil); err != nil {
		return err
	}
	if err := stats("stat_us", dir+"/flat/", nil); err != nil {
		return err
	}
	if err := stats("miss_us", dir+"/flat/none-", fs.ErrNotExist); err != nil {
		return err
	}
	return copies(filepath.Join(dir, "big"))
}

// stats looks at 500 files, a path and a number each, and prints what one look took.
func stats(name, prefix string, want error) error {
	began := time.Now()
	const n = 500
	for i := range n {
		if _, err := os.Stat(prefix + fmt.Sprint(i)); !errors.Is(err, want) {
			return fmt.Errorf("stat: %v, and not %v", err, want)
		}
	}
	fmt.Printf("%s %.1f\n", name, float64(time.Since(began).Microseconds())/n)
	return nil
}

func copies(name string) error {
	chunk := make([]byte, 1<<20)
	began := time.Now()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	for range size / len(chunk) {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Printf("write_mb_s %.1f\n", size/1e6/time.Since(began).Seconds())
	if f, err = os.Open(name); err != nil { // what was written is dropped from the guest's memory when a file is opened
		return err
	}
	defer f.Close()
	began = time.Now()
	for {
		if _, err := f.Read(chunk); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	fmt.Printf("read_mb_s %.1f\n", size/1e6/time.Since(began).Seconds())
	return nil
}
