package arcbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
)

// Dial connects to a running container: in its network by "tcp", "tcp4" or "tcp6", and an IP address and port;
// no host, or localhost, is the container itself. No port has to be published. The connection has a CloseWrite. ctx bounds
// the connecting only.
//
// Without a host, or with the host of an address that the container has in a network, the connection is that of a neighbour
// in the network, which is fast. What is listened to at the loopback address only is found without a host too. A connection
// ends with the container.
//
// The network "unix" is that of the sockets in the container's files: the address is an absolute path, in which links lead
// within the container's root, or "@" and the rest of an abstract name. One that is not there is ErrNotFound.
//
// A container that does not run is ErrConflict, an address that is none ErrInvalid, and nobody who listens ErrUnavailable.
func (r *Runtime) Dial(ctx context.Context, ref, network, address string) (net.Conn, error) {
	return call(ctx, r, "Dial", ref, func(ctx context.Context) (net.Conn, error) {
		if network == "unix" {
			return r.containers.Dial(ctx, ref, network, address)
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("%w address: %w", ErrInvalid, err)
		}
		at, err := netip.ParseAddr(host)
		if host == "" || err == nil {
			c, known, derr := r.containers.DialNetwork(ctx, ref, network, at, port)
			if known && (derr == nil || host != "") {
				return c, derr
			}
		}
		if host == "" || host == "localhost" {
			host = "127.0.0.1"
			if network == "tcp6" {
				host = "::1"
			}
		}
		return r.containers.Dial(ctx, ref, network, net.JoinHostPort(host, port))
	})
}

// WaitStrategy is a condition that WaitFor waits for. Make it with one of the functions whose names begin with For, and
// join them with ForAll and ForAny. The zero value holds at once.
type WaitStrategy struct {
	what    string
	check   func(ctx context.Context, w waiting) error // returns when the condition holds, or cannot hold any more
	timeout time.Duration
	joins   bool // it only waits for others, which have times of their own
}

// waiting is what a condition is waited for of.
type waiting struct {
	*Runtime
	id    string
	limit time.Duration // of a condition without a time of its own; 0 is none
}

// DefaultWaitTimeout is how long WaitFor waits where no strategy says how long.
const DefaultWaitTimeout = time.Minute

// WithTimeout returns the strategy with a time after which it fails. 0 and less is none of its own.
func (s WaitStrategy) WithTimeout(d time.Duration) WaitStrategy {
	s.timeout = d
	return s
}

// String says what is waited for.
func (s WaitStrategy) String() string {
	if s.what == "" {
		return "nothing"
	}
	return s.what
}

// run waits for the condition within the strategy's own time.
func (s WaitStrategy) run(ctx context.Context, w waiting) error {
	if s.check == nil {
		return nil
	}
	limit := s.timeout
	switch {
	case limit > 0:
		w.limit = 0 // it is enough for all that it joins
	case !s.joins:
		limit = w.limit
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if err := s.check(ctx, w); err != nil {
		return fmt.Errorf("wait for %s: %w", s, err)
	}
	return nil
}

// The times between two looks at what no event tells of.
const (
	firstLook = 10 * time.Millisecond
	lastLook  = 500 * time.Millisecond
)

// tryTimeout bounds one try to reach a port: one who accepts and says nothing may do better when asked again.
const tryTimeout = 10 * time.Second

// again calls try, after longer and longer times, until it says that it is done or the container has exited.
func again(ctx context.Context, w waiting, try func(context.Context) (done bool, err error)) error {
	var last error
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		done, err := try(ctx)
		if done {
			return err
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if errors.Is(err, ErrInUse) { // another program has it
			return err
		}
		if err := exited(ctx, w); err != nil && ctx.Err() == nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if last != nil {
				return fmt.Errorf("%w; the last try: %w", ctx.Err(), last)
			}
			return ctx.Err()
		}
	}
}

// errExited means that a container ended before it was what somebody waited for.
var errExited = errors.New("the container has exited")

func exited(ctx context.Context, w waiting) error {
	i, err := w.InspectContainer(ctx, w.id)
	if err != nil {
		return err
	}
	switch i.State {
	case ContainerExited:
		return fmt.Errorf("%w: %w with code %d", ErrConflict, errExited, i.Exit.Code)
	case ContainerDead:
		return fmt.Errorf("%w: the container is dead: %s", ErrConflict, i.Reason)
	}
	return nil
}

// ForLog waits until the container has written a text to stdout or stderr, so many times; 0 and less is once. What it wrote
// before counts.
func ForLog(text string, times int) WaitStrategy {
	return forLog(fmt.Sprintf("the log to have %q", text), times, func(b []byte) (n, end int) {
		if text == "" {
			return 1, len(b)
		}
		n = bytes.Count(b, []byte(text))
		if n > 0 {
			end = bytes.LastIndex(b, []byte(text)) + len(text)
		}
		return n, end
	})
}

// ForLogMatch is ForLog for a regular expression, which is applied to single lines.
func ForLogMatch(re *regexp.Regexp, times int) WaitStrategy {
	if re == nil {
		return WaitStrategy{what: "the log", check: func(context.Context, waiting) error {
			return fmt.Errorf("%w regular expression: nil", ErrInvalid)
		}}
	}
	return forLog(fmt.Sprintf("the log to match %q", re), times, func(b []byte) (n, end int) {
		for _, m := range re.FindAllIndex(b, -1) {
			n, end = n+1, m[1]
		}
		return n, end
	})
}

// forLog counts in each line. Lines that come in pieces are put together as far as that is reasonable.
func forLog(what string, times int, count func([]byte) (n, end int)) WaitStrategy {
	times = max(times, 1)
	if times > 1 {
		what += fmt.Sprintf(" %d times", times)
	}
	return WaitStrategy{what: what, check: func(ctx context.Context, w waiting) error {
		return again(ctx, w, func(ctx context.Context) (bool, error) { // a log that is followed ends with each run
			seen, err := w.countInLog(ctx, times, count)
			if err == nil && seen < times {
				err = fmt.Errorf("%w: its log ended after %d of %d", ErrConflict, seen, times)
				return false, err
			}
			return !errors.Is(err, ErrUnavailable), err // its machine may be there again soon
		})
	}}
}

// countInLog follows a log until it has so many of what count looks for, or ends.
func (w waiting) countInLog(ctx context.Context, times int, count func([]byte) (n, end int)) (seen int, err error) {
	var lines [2][]byte // by stream: what was begun and not found in
	for e, err := range w.ContainerLogs(ctx, w.id, LogsOptions{Follow: true}) {
		if err != nil {
			return seen, err
		}
		i := 0
		if e.Stderr {
			i = 1
		}
		line := append(lines[i], e.Line...)
		n, end := count(line)
		if seen += n; seen >= times {
			return seen, nil
		}
		if line = line[end:]; bytes.HasSuffix(e.Line, []byte("\n")) {
			line = nil
		}
		lines[i] = line[max(len(line)-maxLogLine, 0):]
	}
	return seen, nil
}

// maxLogLine is how many bytes of a line are looked at together.
const maxLogLine = 64 << 10

// ForListeningPort waits until something in the container accepts TCP connections to a port of its loopback address, or of
// any. It needs no program in the container.
func ForListeningPort(port uint16) WaitStrategy {
	return WaitStrategy{what: fmt.Sprintf("port %d", port), check: func(ctx context.Context, w waiting) error {
		return again(ctx, w, func(ctx context.Context) (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, tryTimeout)
			defer cancel()
			conn, err := w.Dial(ctx, w.id, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			if err == nil {
				return true, conn.Close()
			}
			return errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported), err
		})
	}}
}

// ForHTTP waits until a GET of a path, on a port of the container, is answered with a status; 0 is any from 200 to 299. It
// needs no program in the container. Redirects are not followed.
func ForHTTP(port uint16, path string, status int) WaitStrategy {
	path = "/" + strings.TrimPrefix(path, "/")
	want := "200 to 299"
	if status != 0 {
		want = strconv.Itoa(status)
	}
	what := fmt.Sprintf("HTTP status %s of %s on port %d", want, path, port)
	return WaitStrategy{what: what, check: func(ctx context.Context, w waiting) error {
		client := &http.Client{
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
					return w.Dial(ctx, w.id, network, address)
				},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		url := "http://" + net.JoinHostPort("localhost", strconv.Itoa(int(port))) + path
		return again(ctx, w, func(ctx context.Context) (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, tryTimeout)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return true, fmt.Errorf("%w path %q: %w", ErrInvalid, path, err)
			}
			resp, err := client.Do(req)
			if err != nil {
				return false, err
			}
			resp.Body.Close()
			if status == 0 && resp.StatusCode/100 == 2 || resp.StatusCode == status {
				return true, nil
			}
			return false, fmt.Errorf("the answer was %s", resp.Status)
		})
	}}
}

// ForExit waits until the container has exited with a code.
func ForExit(code int) WaitStrategy {
	return WaitStrategy{what: fmt.Sprintf("exit with %d", code), check: func(ctx context.Context, w waiting) error {
		exit, err := w.WaitContainer(ctx, w.id, WaitOptions{})
		if err == nil && exit.Code != code {
			err = fmt.Errorf("%w: %w with code %d", ErrConflict, errExited, exit.Code)
		}
		return err
	}}
}

// ForCommand waits until a command, executed in the container again and again, ends with an exit code.
func ForCommand(code int, args ...string) WaitStrategy {
	return WaitStrategy{what: fmt.Sprintf("exit code %d of %q", code, args), check: func(ctx context.Context, w waiting) error {
		return again(ctx, w, func(ctx context.Context) (bool, error) {
			p, err := w.Exec(ctx, w.id, ExecSpec{Args: args}, ExecOptions{})
			if err != nil {
				return errors.Is(err, ErrInvalid), err
			}
			defer p.Close()
			exit, err := p.Wait(ctx)
			if err == nil && exit.Code != code {
				return false, fmt.Errorf("it ended with %d", exit.Code)
			}
			return err == nil, err
		})
	}}
}

// ForHealthy waits until the health check of the container has succeeded.
func ForHealthy() WaitStrategy {
	return WaitStrategy{what: "health", check: func(ctx context.Context, w waiting) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		events := w.Events(ctx, EventsOptions{Kinds: []event.Kind{event.ContainerHealth, event.ContainerExited, event.ContainerRemoved}})
		for {
			i, err := w.InspectContainer(ctx, w.id)
			switch {
			case err != nil:
				return err
			case i.Check == nil:
				return fmt.Errorf("%w: the container has no health check", ErrInvalid)
			case i.Health != nil && i.Health.Status == HealthHealthy && i.State != ContainerExited:
				return nil
			case i.State == ContainerExited, i.State == ContainerDead:
				return exited(ctx, w)
			}
			if _, ok := <-events; !ok && ctx.Err() == nil {
				return ErrClosed
			}
		}
	}}
}

// ForAll waits until all conditions hold, one after the other in any order. The first that fails ends it.
func ForAll(all ...WaitStrategy) WaitStrategy { return join("all of", all, len(all)) }

// ForAny waits until one condition holds. It fails when all have. Without conditions it holds at once.
func ForAny(all ...WaitStrategy) WaitStrategy { return join("any of", all, min(1, len(all))) }

// join waits for so many of the conditions, side by side.
func join(what string, all []WaitStrategy, need int) WaitStrategy {
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.String()
	}
	return WaitStrategy{what: what + " (" + strings.Join(names, "; ") + ")", joins: true, check: func(ctx context.Context, w waiting) error {
		outer := ctx
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan error, len(all))
		for _, s := range all {
			go func() { results <- s.run(ctx, w) }() // all results are read below
		}
		defer cancel()
		var failed []error
		need := need
		for left := len(all) - 1; left >= 0; left-- {
			switch err := <-results; {
			case need == 0 || left+1 < need: // it is decided
				if err != nil && need > 0 && outer.Err() != nil {
					failed = append(failed, err) // not because of the decision
				}
				continue
			case err == nil:
				need--
			default:
				failed = append(failed, err)
			}
			if need == 0 || left < need {
				cancel()
			}
		}
		if need == 0 {
			return nil
		}
		return errors.Join(failed...)
	}}
}

// errorLogLines is how many lines of the log an error of WaitFor has.
const errorLogLines = 10

// WaitFor waits until all conditions hold for a container, which may not have been started yet. It fails when one cannot
// hold any more, as when the container exits and is not started again by its policy. Where ctx has no deadline, each
// condition without a time of its own fails after DefaultWaitTimeout. The error ends with the last lines of the container's
// log, unless ctx was cancelled.
func (r *Runtime) WaitFor(ctx context.Context, ref string, conditions ...WaitStrategy) error {
	i, err := r.InspectContainer(ctx, ref)
	if err != nil {
		return opError("WaitFor", ref, err)
	}
	s := ForAll(conditions...)
	if len(conditions) == 1 {
		s = conditions[0]
	}
	w := waiting{Runtime: r, id: i.ID}
	if _, ok := ctx.Deadline(); !ok {
		w.limit = DefaultWaitTimeout
	}
	err = s.run(ctx, w)
	if err == nil {
		return nil
	}
	if _, runs := r.machines.Current(i.Machine); runs && !errors.Is(ctx.Err(), context.Canceled) {
		if tail := r.logTail(i.ID); tail != "" {
			err = fmt.Errorf("%w; the last lines of its log:\n%s", err, tail)
		}
	}
	return &Error{Op: "WaitFor", Ref: ref, Err: err}
}

// logTailTimeout is how long an error of WaitFor may wait for the log.
const logTailTimeout = 5 * time.Second

// logTail returns the last lines of a log, in a short time. What cannot be read is not worth an error here.
func (r *Runtime) logTail(id string) string {
	ctx, cancel := context.WithTimeout(r.ctx, logTailTimeout)
	defer cancel()
	var b strings.Builder
	for e, err := range r.ContainerLogs(ctx, id, LogsOptions{Tail: errorLogLines}) {
		if err != nil {
			break
		}
		b.Write(e.Line)
	}
	return strings.TrimRight(b.String(), "\n")
}
