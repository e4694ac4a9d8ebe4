package qemu

import (
	"io"
	"os"
)

// startProcess starts a program that cannot outlive this process. See newProcess for the files.
func startProcess(path string, args []string, stderr io.Writer, files []*os.File) (*process, error) {
	return startWatched(path, args, stderr, files)
}

// anonymous returns a file without a name, that is gone when nobody has it any more.
func anonymous(name string, size int64) (*os.File, error) {
	f, err := os.CreateTemp("", name)
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
