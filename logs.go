package arcbox

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// LogsOptions says which entries of a log are wanted. The zero value is all that there is now.
type LogsOptions struct {
	Stdout, Stderr bool      // only this one; both false is both
	Follow         bool      // go on with what comes, until the container has exited
	Since, Until   time.Time // only from then, and only before then; zero is no bound
	Tail           int       // only so many of the last entries, and what follows; 0 is all, -1 none
}

// LogEntry is a line that a container wrote, or a piece of one that is longer than 16 KiB.
type LogEntry struct {
	Time   time.Time // by the guest's clock
	Stderr bool      // it was written to stderr; false is stdout, or a terminal
	Line   []byte    // with its newline, where it has one
}

// ContainerLogs returns what a container wrote, in order, to range over:
//
//	for entry, err := range rt.ContainerLogs(ctx, "web", arcbox.LogsOptions{Follow: true}) {
//		if err != nil {
//			return err
//		}
//		os.Stdout.Write(entry.Line)
//	}
//
// An error is the last that comes. The log is kept until the container is removed, with the limits of ContainerSpec.Log;
// reading it starts the machine where it does not run. Each loop reads anew. ctx bounds the whole loop. Close must not be
// called in the loop.
func (r *Runtime) ContainerLogs(ctx context.Context, ref string, opts LogsOptions) iter.Seq2[LogEntry, error] {
	return func(yield func(LogEntry, error) bool) {
		stopped := false
		err := callNone(ctx, r, "ContainerLogs", ref, func(ctx context.Context) error {
			return r.eachLog(ctx, ref, opts, func(e LogEntry) error {
				if !yield(e, nil) {
					stopped = true
					return io.EOF
				}
				return nil
			})
		})
		if err != nil && !stopped {
			yield(LogEntry{}, err)
		}
	}
}

// CopyLogs is ContainerLogs into two writers. A nil writer drops what comes, and one that fails ends the copying.
func (r *Runtime) CopyLogs(ctx context.Context, ref string, stdout, stderr io.Writer, opts LogsOptions) error {
	return callNone(ctx, r, "CopyLogs", ref, func(ctx context.Context) error {
		return r.eachLog(ctx, ref, opts, func(e LogEntry) error {
			w := stdout
			if e.Stderr {
				w = stderr
			}
			if w == nil {
				return nil
			}
			_, err := w.Write(e.Line)
			return err
		})
	})
}

// eachLog calls fn with each entry until it returns an error, which ends the reading and is returned.
func (r *Runtime) eachLog(ctx context.Context, ref string, opts LogsOptions, fn func(LogEntry) error) error {
	both := !opts.Stdout && !opts.Stderr
	l, release, err := r.containers.Logs(ctx, ref, api.LogsRequest{
		Stdout: opts.Stdout || both, Stderr: opts.Stderr || both, Follow: opts.Follow,
		Since: opts.Since, Until: opts.Until, Tail: opts.Tail,
	})
	if err != nil {
		return err
	}
	defer release()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		rec, err := l.Next()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := fn(LogEntry{Time: rec.At, Stderr: rec.Stderr, Line: rec.Line}); err != nil {
			return err
		}
	}
}
