// Package arcboxtest is for tests that use containers: it gives a test a Runtime of its own, which goes with the test, and
// forks of it for subtests.
//
//	func TestShop(t *testing.T) {
//		rt := arcboxtest.Runtime(t, arcboxtest.Options{})
//		// Start a database in rt and fill it, once.
//		for _, c := range cases {
//			t.Run(c.name, func(t *testing.T) {
//				t.Parallel()
//				rt := rt.Fork(t) // with the database running, and data that nobody else sees
//			})
//		}
//	}
//
// Images are pulled once for all tests of the user: they share a data directory in the user's cache directory. What the
// Runtime logs and the guest prints on its console is part of the output of a test that fails.
//
// Main adds a check that the tests of a package leave nothing behind:
//
//	func TestMain(m *testing.M) { os.Exit(arcboxtest.Main(m)) }
package arcboxtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go"
)

// Options tunes Runtime. The zero value works.
type Options struct {
	// Config configures the Runtime. Ephemeral and VM.Forkable are set. DataDir "" is the directory arcbox-test in the
	// user's cache directory, and VM.Memory 0 is 512 MiB. Where Logger or VM.Console are set, the test's output does not
	// have what they get.
	Config arcbox.Config
}

// Sandbox is a Runtime that goes with its test.
type Sandbox struct {
	*arcbox.Runtime

	cfg  arcbox.Config
	test testing.TB // whose end is the sandbox's

	once     sync.Once
	snapshot string // id, set by once
	err      error
}

// Timeout bounds what the helpers themselves wait for, such as the start of a fork: far above what anything takes on a
// slow and busy machine.
const Timeout = 5 * time.Minute

const defaultMemory = 512 << 20

// Runtime returns an ephemeral Runtime, which is closed when the test and its subtests have ended. Nothing is booted yet.
// What goes wrong ends the test.
func Runtime(t testing.TB, opts Options) *Sandbox {
	t.Helper()
	cfg := opts.Config
	cfg.Ephemeral, cfg.VM.Forkable = true, true
	if cfg.VM.Memory == 0 {
		cfg.VM.Memory = defaultMemory
	}
	if cfg.DataDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("arcboxtest: find the user's cache directory: %v; set Options.Config.DataDir", err)
		}
		cfg.DataDir = filepath.Join(cache, "arcbox-test")
	}
	return open(t, cfg)
}

// open makes the Runtime of a sandbox, with the output of t.
func open(t testing.TB, cfg arcbox.Config) *Sandbox {
	t.Helper()
	s := &Sandbox{cfg: cfg, test: t}
	logs, console := &tail{}, &tail{}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if cfg.VM.Console == nil {
		cfg.VM.Console = console
	}
	rt, err := arcbox.New(cfg)
	if err != nil {
		t.Fatalf("arcboxtest: %v", err)
	}
	s.Runtime = rt
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Errorf("arcboxtest: close the runtime: %v", err)
		}
		if t.Failed() {
			logs.show(t, "log of the runtime")
			console.show(t, "console of the machines")
		}
	})
	return s
}

// Fork returns a Runtime whose default machine goes on from that of s, with its containers, their memory and what they
// have written, none of which the two share from then on. It is closed when t has ended.
//
// The first call saves the machine of s, which must run; every fork goes on from that, whatever happened in s meanwhile.
// Forks may be made in parallel. Containers find each other by the names and addresses that they had. A fork cannot be forked
// itself: ForkAgain makes those that can.
func (s *Sandbox) Fork(t testing.TB) *Sandbox {
	t.Helper()
	return s.fork(t, false)
}

// ForkAgain is Fork for one that will be forked itself: for a test that warms up further, with subtests of its own. It takes
// longer to start, and memory of its own.
func (s *Sandbox) ForkAgain(t testing.TB) *Sandbox {
	t.Helper()
	return s.fork(t, true)
}

func (s *Sandbox) fork(t testing.TB, again bool) *Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	s.once.Do(func() { s.err = s.save(ctx) })
	if s.err != nil {
		t.Fatalf("arcboxtest: save the machine to fork it: %v", s.err)
	}
	cfg := s.cfg
	cfg.VM.Snapshot, cfg.VM.CPUs, cfg.VM.Memory = s.snapshot, 0, 0
	cfg.VM.Forkable = again // otherwise its memory is shared with the other forks
	child := open(t, cfg)
	if err := child.StartMachine(ctx, arcbox.DefaultMachine); err != nil {
		t.Fatalf("arcboxtest: start a fork: %v", err)
	}
	return child
}

// save takes the snapshot that the forks go on from. It is removed before the sandbox's Runtime is closed.
func (s *Sandbox) save(ctx context.Context) error {
	if !s.cfg.VM.Forkable {
		return fmt.Errorf("%w: this fork cannot be forked: make it with ForkAgain, or fork the sandbox that it was made from", arcbox.ErrUnsupported)
	}
	snap, err := s.SnapshotMachine(ctx, arcbox.DefaultMachine, arcbox.SnapshotOptions{Temporary: true})
	if err != nil {
		return err
	}
	s.snapshot = snap.ID
	s.test.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		if err := s.RemoveSnapshot(ctx, snap.ID); err != nil {
			s.test.Errorf("arcboxtest: remove the snapshot of the forks: %v", err)
		}
	})
	return nil
}

// tailLimit is how many bytes of a log the output of a failed test has at most.
const tailLimit = 256 << 10

// tail keeps the end of what it is written.
type tail struct {
	mu      sync.Mutex
	b       []byte
	dropped int
}

// Write appends p.
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if n := len(l.b) - tailLimit; n > tailLimit {
		l.b = append([]byte(nil), l.b[n:]...)
		l.dropped += n
	}
	return len(p), nil
}

func (l *tail) show(t testing.TB, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b) > 0 {
		t.Logf("%s (%d bytes before left out):\n%s", what, l.dropped, l.b)
	}
}
