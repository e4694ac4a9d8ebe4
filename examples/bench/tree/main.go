// Tree works on a directory as programs do that are run in a container, and prints what it took: a line of "name value" for
// each of stat_us (a stat of a file that nobody has looked at), walk_ms (a walk of the directory tree with a stat of every
// file, as git status does), write_mb_s and read_mb_s (of a file of 64 MiB).
package main

import (
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
	fmt.Printf("walk_ms %.1f\n", float64(time.Since(began).Microseconds())/1000)
	began = time.Now()
	const stats = 500
	for i := range stats {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("flat/%d", i))); err != nil {
			return err
		}
	}
	fmt.Printf("stat_us %.1f\n", float64(time.Since(began).Microseconds())/stats)
	return copies(filepath.Join(dir, "big"))
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
