package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How requests are repeated: what may heal is tried this often, with waits that double from the first to the last.
const (
	maxTries      = 5
	firstBackoff  = 200 * time.Millisecond
	lastBackoff   = 10 * time.Second
	maxRetryAfter = time.Minute
	stallTimeout  = 30 * time.Second // without a byte of a body
)

// repo is a repository of a registry that has accepted us.
type repo struct {
	s      *Store
	client *http.Client
	base   string // URL up to and including the repository's name
}

// plainHTTP tells whether a registry is spoken to without TLS.
func (s *Store) plainHTTP(host string) bool {
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	bare = strings.Trim(bare, "[]")
	if ip := net.ParseIP(bare); bare == "localhost" || (ip != nil && ip.IsLoopback()) {
		return true
	}
	return s.cfg.PlainHTTP != nil && s.cfg.PlainHTTP(host)
}

// schemeGuard refuses requests without TLS to hosts that are not allowed them, whoever makes them or redirects there, and
// requests with TLS to the registry that has none, which saves the attempt.
type schemeGuard struct {
	s    *Store
	next http.RoundTripper
}

// RoundTrip passes a request on.
func (g schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if plain := g.s.plainHTTP(req.URL.Host); req.URL.Scheme == "http" && !plain {
		return nil, fmt.Errorf("request to %s without TLS, allow it by PlainHTTP if that is right: %w", req.URL.Host, errs.ErrUnsupported)
	}
	return g.next.RoundTrip(req)
}

// connect finds out how the registry of a reference wants to be spoken to.
func (s *Store) connect(ctx context.Context, named reference.Named) (*repo, error) {
	host := reference.Domain(named)
	var opts []name.Option
	plain := s.plainHTTP(host)
	if plain {
		opts = append(opts, name.Insecure)
	}
	rep, err := name.NewRepository(named.Name(), opts...)
	if err != nil {
		return nil, fmt.Errorf("repository of %s: %w (%w)", named, err, errs.ErrInvalid)
	}
	keys := s.cfg.Keychain
	if keys == nil {
		keys = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keys, rep)
	if err != nil {
		return nil, fmt.Errorf("find credentials for %s: %w", rep.RegistryStr(), err)
	}
	var guarded http.RoundTripper = schemeGuard{s: s, next: s.transport}
	if plain {
		guarded = noTLS{host: rep.RegistryStr(), next: guarded}
	}
	var authed http.RoundTripper
	err = s.retry(ctx, func() error {
		authed, err = transport.NewWithContext(ctx, rep.Registry, auth, guarded, []string{rep.Scope(transport.PullScope)})
		return err
	})
	if err != nil {
		return nil, registryError("registry "+rep.RegistryStr(), err)
	}
	scheme := "https"
	if plain {
		scheme = "http"
	}
	return &repo{
		s: s, client: &http.Client{Transport: authed, CheckRedirect: fewRedirects},
		base: scheme + "://" + rep.RegistryStr() + "/v2/" + rep.RepositoryStr(),
	}, nil
}

// newTransport is http.DefaultTransport without proxies from the environment and with a bound on waiting for an answer.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: stallTimeout,
	}
}

// noTLS keeps the library from trying TLS first with a registry that has none.
type noTLS struct {
	host string
	next http.RoundTripper
}

// RoundTrip passes a request on.
func (t noTLS) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "https" && req.URL.Host == t.host {
		return nil, errors.New("registry is spoken to without TLS")
	}
	return t.next.RoundTrip(req)
}

func fewRedirects(_ *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errRedirects
	}
	return nil
}

var errRedirects = fmt.Errorf("registry redirects more than 10 times: %w", errs.ErrUnavailable)

// httpError is an answer of a registry that is not the one hoped for.
type httpError struct {
	err    error
	status int
	after  time.Duration // by Retry-After
}

// Error returns what the registry said.
func (e *httpError) Error() string { return e.err.Error() }

// Unwrap returns the library's error.
func (e *httpError) Unwrap() error { return e.err }

// get asks for something of the repository. For off > 0 the answer may still begin at 0; the caller looks at its status.
func (r *repo) get(ctx context.Context, path string, accept []string, off, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w (%w)", path, err, errs.ErrInvalid)
	}
	for _, a := range accept {
		req.Header.Add("Accept", a)
	}
	// Bodies are hashed as they are; transparent compression would change them.
	req.Header.Set("Accept-Encoding", "identity")
	if off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, size-1))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		_ = resp.Body.Close()
		return nil, &httpError{err: err, status: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"))}
	}
	if resp.StatusCode == http.StatusPartialContent && off > 0 &&
		!strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", off)) {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("registry sent range %.60q instead of one from %d: %w", resp.Header.Get("Content-Range"), off, errs.ErrUnavailable)
	}
	return resp, nil
}

func retryAfter(v string) time.Duration {
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return time.Duration(min(n, 3600)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return time.Until(t)
	}
	return 0
}

// retry calls do until it succeeds, fails for good, or has failed too often.
func (s *Store) retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == maxTries || !mayHeal(err) || ctx.Err() != nil {
			return ctxError(ctx, err)
		}
		s.log.Debug("request to a registry is repeated", "try", try, "err", err)
		if err := s.pause(ctx, try, err); err != nil {
			return err
		}
	}
}

// pause waits before the next try.
func (s *Store) pause(ctx context.Context, try int, why error) error {
	wait := min(s.backoff<<(try-1), lastBackoff)
	wait += rand.N(wait/2 + 1)
	var h *httpError
	if errors.As(why, &h) && h.after > wait {
		if h.after > maxRetryAfter {
			return fmt.Errorf("registry asks to come back in %s: %w", h.after.Round(time.Second), why)
		}
		wait = h.after
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// ctxError returns the reason of an ended context instead of what it made of a request.
func ctxError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// mayHeal tells whether the same request may succeed later.
func mayHeal(err error) bool {
	if status := statusOf(err); status != 0 {
		return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
	}
	switch {
	case errors.Is(err, errRedirects):
		return false
	case errors.Is(err, errs.ErrUnavailable), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true
	case errs.Code(err) != "":
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	var op net.Error
	return errors.As(err, &op)
}

func statusOf(err error) int {
	var h *httpError
	if errors.As(err, &h) {
		return h.status
	}
	var t *transport.Error
	if errors.As(err, &t) {
		return t.StatusCode
	}
	return 0
}

// registryError gives the error of a request its meaning.
func registryError(what string, err error) error {
	switch status := statusOf(err); {
	case err == nil:
		return nil
	case status == http.StatusNotFound:
		return fmt.Errorf("%s: registry does not have it: %w (%w)", what, err, errs.ErrNotFound)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("%s: registry refuses, check the name and the credentials: %w (%w)", what, err, errs.ErrUnavailable)
	case status == http.StatusTooManyRequests:
		return fmt.Errorf("%s: registry has had too many requests, log in or wait: %w (%w)", what, err, errs.ErrUnavailable)
	case errs.Code(err) != "", errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%w)", what, err, errs.ErrUnavailable)
}

var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerManifestList, dockerManifest,
}

// manifest fetches an index or manifest by tag or digest.
func (r *repo) manifest(ctx context.Context, ref string, want digest.Digest) ([]byte, error) {
	return r.small(ctx, "/manifests/"+ref, manifestTypes, want, r.s.cfg.Limits.ManifestSize)
}

// small fetches what fits into memory and verifies it.
func (r *repo) small(ctx context.Context, path string, accept []string, want digest.Digest, limit int64) ([]byte, error) {
	var data []byte
	err := r.s.retry(ctx, func() error {
		resp, err := r.get(ctx, path, accept, 0, 0)
		if err != nil {
			return err
		}
		body := newStallReader(resp.Body, r.s.stall)
		defer func() { _ = body.Close() }()
		data, err = readLimited(body, path, limit)
		return err
	})
	if err != nil {
		return nil, registryError(strings.TrimPrefix(path, "/"), err)
	}
	if got := digest.FromBytes(data); want != "" && got != want {
		return nil, fmt.Errorf("registry sent content with digest %s instead of %s: %w", got, want, errs.ErrCorrupt)
	}
	return data, nil
}
