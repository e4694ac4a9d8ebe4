package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
)

// rehearsal is the command of a container in a machine that is about to be saved: it has the kernel do, in every part of it that
// programs use soon after their start, what a machine that goes on from there would have to do for the first time. It reads
// stdin to its end, says on stdout that all is well, or on stderr what is not, and returns the code to exit with.
func rehearsal(stdin io.Reader, stdout, stderr io.Writer) int {
	if err := rehearse(stdin, stdout); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func rehearse(stdin io.Reader, stdout io.Writer) error {
	if _, err := io.Copy(io.Discard, stdin); err != nil {
		return err
	}
	for _, part := range []func() error{useFiles, useProcesses, useNetwork} {
		if err := part(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(stdout, "ok")
	return err
}

// useFiles reads what is there, and makes, writes, renames and removes files.
func useFiles() error {
	if _, err := os.ReadDir("/"); err != nil {
		return err
	}
	if _, err := os.ReadFile("/etc/hosts"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/", "rehearsal")
	if err != nil {
		return err
	}
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	err = os.WriteFile(one, make([]byte, 64<<10), 0o600)
	if err == nil {
		err = errors.Join(os.Chmod(one, 0o644), os.Rename(one, two), os.Symlink("two", one))
	}
	if err == nil {
		_, err = os.ReadFile(one)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// useProcesses executes a child, which says something and ends.
func useProcesses() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"-"}, &os.ProcAttr{Files: []*os.File{nil, nil, w}})
	err = errors.Join(err, w.Close())
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	_, werr := p.Wait()
	return errors.Join(err, werr)
}

// useNetwork connects to itself.
func useNetwork() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := io.WriteString(s, "x"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
