package image

import (
	"context"
	"crypto/tls"
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
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How requests are repeated: what may heal is tried this often, with waits that double from the first to the last.
const (
	maxTries      = 5
	mirrorTries   = 2 // where there is another place to ask
	firstBackoff  = 200 * time.Millisecond
	lastBackoff   = 10 * time.Second
	maxRetryAfter = time.Minute
	stallTimeout  = 30 * time.Second // without a byte of a body
)

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
	resp, err := r.answered(req, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusPartialContent && off > 0 &&
		!strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", off)) {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("registry sent range %.60q instead of one from %d: %w", resp.Header.Get("Content-Range"), off, errs.ErrUnavailable)
	}
	return resp, nil
}

// answered makes a request whose answer must begin before the registry counts as stalled.
func (r *repo) answered(req *http.Request, statuses ...int) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	silent := time.AfterFunc(r.s.stall, func() {
		cancel(fmt.Errorf("registry has not answered for %s: %w", r.s.stall, errs.ErrUnavailable))
	})
	resp, err := r.send(req.WithContext(ctx), statuses...)
	silent.Stop()
	if err != nil {
		err = ctxError(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &cancelBody{ReadCloser: resp.Body, cancel: cancel}
	return resp, nil
}

// cancelBody ends the context of its request when it is closed.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close closes the body.
func (b *cancelBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
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
func (r *repo) retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try >= r.tries || !mayHeal(err) || ctx.Err() != nil {
			return ctxError(ctx, err)
		}
		r.s.log.Debug("request to a registry is repeated", "registry", r.host, "try", try, "err", err)
		if err := r.s.pause(ctx, try, err); err != nil {
			return err
		}
	}
}

// pause waits before the next try.
func (s *Store) pause(ctx context.Context, try int, why error) error {
	wait := min(s.backoff<<min(try-1, 10), lastBackoff)
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
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
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
	err := r.retry(ctx, func() error {
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
