package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	_ "crypto/sha256" // go-digest panics without it

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config configures Open.
type Config struct {
	// Dir is the store's directory; it is made with mode 0700 where it does not exist. Required.
	Dir string
	// Logger gets what is not an error of any call, such as a record that cannot be read; nil is silent.
	Logger *slog.Logger
	// Platform is what images run on; the zero value is Linux on this program's architecture.
	Platform ocispec.Platform
	// Keychain finds credentials for a registry; nil is keychain.Docker, which reads Docker's configuration file and
	// credential helpers, then Podman's.
	Keychain authn.Keychain
	// PlainHTTP tells whether a registry host ("host" or "host:port") is spoken to without TLS; nil is none. localhost and
	// loopback addresses are asked with TLS first and then without, unless the function says that they have none.
	PlainHTTP func(host string) bool
	// Mirrors are asked before a registry, by the registry's host as references have it ("docker.io"), in their order; the
	// registry itself is asked last. A mirror is "host[:port][/path]", without a scheme: PlainHTTP holds for it too.
	Mirrors map[string][]string
	// CA has certificates in PEM that registries are trusted by, besides the system's; nil is none.
	CA []byte
	// Proxy chooses the proxy for a request; nil is none. http.ProxyFromEnvironment reads the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// Transport carries requests to registries; nil is one with sane timeouts that obeys CA and Proxy, which must be nil
	// where it is not. Close does not close it.
	Transport http.RoundTripper
	// Limits bound what an image may ask of the store; the zero value has sane defaults.
	Limits Limits
}

// Store is an open image store. Its methods may be called from many goroutines, and many processes may have the same
// directory open. After Close they return errs.ErrClosed.
type Store struct {
	cfg   Config
	dir   string
	log   *slog.Logger
	blobs *blobStore

	mirrors   map[string][]string
	transport http.RoundTripper
	idle      func()        // closes what the transport keeps open
	backoff   time.Duration // before the second try of a request
	stall     time.Duration // that a body may yield nothing

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	mu     sync.Mutex // guards closed against ops.Add
	closed bool
	ops    sync.WaitGroup

	seenMu sync.Mutex
	seen   map[string]layerStamp // layer images whose checksum has been verified, by path
}

// Open opens the store in cfg.Dir and makes it where there is none. It removes what processes that died left behind. It
// touches no network. Errors wrap errs.ErrInvalid for a bad Config, or say which path cannot be used.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, fmt.Errorf("open image store: Config.Dir is empty: %w", errs.ErrInvalid)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.Limits.gate = newGate()
	if cfg.Platform.OS == "" {
		cfg.Platform.OS = "linux"
	}
	if cfg.Platform.Architecture == "" {
		cfg.Platform.Architecture = runtime.GOARCH
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, dir: dir, log: cfg.Logger, seen: map[string]layerStamp{}}
	if s.mirrors, err = checkMirrors(cfg.Mirrors); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.setTransport(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, sub := range []string{"", "blobs/sha256", "layers", "records", "refs", "uses", "partial", "ingest", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(sub)), 0o700); err != nil {
			return nil, fmt.Errorf("open image store, make its directories writable: %w", err)
		}
	}
	s.blobs = &blobStore{root: dir}
	if err := s.blobs.open(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.sweepRecords()
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Close ends the operations that are under way, waits for them, and removes what they were writing. A second call waits
// too and does nothing else.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel(fmt.Errorf("image store: %w", errs.ErrClosed))
	s.ops.Wait()
	if !first {
		return nil
	}
	s.idle()
	return s.blobs.close()
}

// begin starts an operation: it joins the caller's context with the store's life. An operation that reads or writes content
// may lease it. The function it returns ends the operation and must be called.
func (s *Store) begin(ctx context.Context, content bool) (context.Context, func(), error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("image store: %w", errs.ErrClosed)
	}
	s.ops.Add(1)
	s.mu.Unlock()
	if content {
		s.blobs.leases.enter()
	}
	opCtx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	return opCtx, func() {
		stop()
		cancel(nil)
		if content {
			if err := s.blobs.leases.leave(); err != nil {
				s.log.Warn("content is kept longer than needed", "err", err)
			}
		}
		s.ops.Done()
	}, nil
}

// beginRecords is begin for an operation that has the lock of the records to its end.
func (s *Store) beginRecords(ctx context.Context, content, exclusive bool) (context.Context, func(), error) {
	ctx, end, err := s.begin(ctx, content)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := fsx.Lock(ctx, s.lockPath("records"), exclusive)
	if err != nil {
		end()
		return nil, nil, err
	}
	return ctx, func() {
		unlock()
		end()
	}, nil
}

// transfer is the frame of a pull or a push of a reference.
func (s *Store) transfer(ctx context.Context, verb, ref string, do func(context.Context, reference.Named) (Image, error)) (Image, error) {
	named, err := parseRef(ref)
	if err != nil {
		return Image{}, err
	}
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return Image{}, err
	}
	defer end()
	img, err := do(ctx, named)
	if err != nil {
		return Image{}, fmt.Errorf("%s %s: %w", verb, named, err)
	}
	return img, nil
}

func (s *Store) lockPath(name string) string { return filepath.Join(s.dir, "locks", name) }

// lockWork makes this call the only one, of all processes, that works on a blob or layer. The lock's file goes with the
// lock.
func (s *Store) lockWork(ctx context.Context, name string) (func(), error) {
	path := s.lockPath(name)
	unlock, err := fsx.Lock(ctx, path, true)
	if err != nil {
		return nil, err
	}
	return func() { _ = os.Remove(path); unlock() }, nil
}

// sweepRecords removes what writers of records that died left, and users of images that died. Writers hold the same lock.
func (s *Store) sweepRecords() {
	unlock, err := fsx.TryLock(s.lockPath("records"), true)
	if err != nil {
		return // somebody writes: another Open will do it
	}
	defer unlock()
	if err := s.sweepUses(context.Background()); err != nil {
		s.log.Warn("users of images that ended stay", "err", err)
	}
	for _, sub := range []string{"records", "refs"} {
		if err := fsx.SweepTemp(filepath.Join(s.dir, sub), time.Now().Add(time.Hour)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("left-over files stay", "dir", sub, "err", err)
		}
	}
}
