package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// maxOutput bounds what is kept of the output of a program in bytes.
const maxOutput = 16 << 20

// child is a program to run.
type child struct {
	path   string
	opts   []string // arguments that error messages leave out
	args   []string
	dir    string
	env    []string  // added to that of the process
	stdin  io.Reader // nil for none
	stdout io.Writer // nil returns it from run
	status io.Writer // what it writes to file descriptor 3; nil for none
}

// run runs a program to its end and returns its stdout. When ctx ends, the program and all it started are killed, as far
// as the system can (see isolate). The error of a program that fails holds the end of its stderr.
func (c child) run(ctx context.Context) ([]byte, error) {
	// The parent-death signal is bound to the thread that starts the child, so that must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, c.path, slices.Concat(c.opts, c.args)...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	cmd.WaitDelay = 5 * time.Second // for grandchildren that keep a pipe open
	var stdout, stderr bounded
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdin, &stdout, &stderr
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	isolate(cmd)
	wait := func() {}
	if c.status != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("run %s: %w", c.path, err)
		}
		cmd.ExtraFiles = []*os.File{w}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(c.status, r)
		}()
		wait = func() {
			_ = w.Close()
			_ = r.SetReadDeadline(time.Now().Add(time.Second)) // for grandchildren that keep it open
			<-done
			_ = r.Close()
		}
	}
	err := cmd.Start()
	if err == nil {
		err = cmd.Wait()
	}
	wait()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return nil, fmt.Errorf("run %s: %w", c.path, cause)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("run %s: %w: %w", c.path, errs.ErrNotFound, err)
	}
	return nil, fmt.Errorf("run %s %s: %w: %s", filepath.Base(c.path), strings.Join(c.args, " "), err, tail(stderr.String(), 20))
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// bounded is a buffer that drops what does not fit.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
