package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/keychain"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

// repo is a repository of a registry that has accepted us.
type repo struct {
	s      *Store
	client *http.Client
	host   string
	base   string // URL up to and including the repository's name
	tries  int    // of one request
}

// plainHTTP tells whether a registry may be spoken to without TLS.
func (s *Store) plainHTTP(host string) bool { return loopback(host) || s.namedPlain(host) }

// namedPlain tells whether the configuration says that a registry has no TLS.
func (s *Store) namedPlain(host string) bool { return s.cfg.PlainHTTP != nil && s.cfg.PlainHTTP(host) }

func loopback(host string) bool {
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	bare = strings.Trim(bare, "[]")
	ip := net.ParseIP(bare)
	return bare == "localhost" || (ip != nil && ip.IsLoopback())
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

// connect finds out how the registry of a repository wants to be spoken to. more are further scopes to ask it for.
func (s *Store) connect(ctx context.Context, named reference.Named, tries int, action string, more ...string) (*repo, error) {
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
		keys = keychain.Docker{}
	}
	auth, err := authn.Resolve(ctx, keys, rep)
	if err != nil {
		err = ctxError(ctx, err)
		return nil, fmt.Errorf("find credentials for %s: %w", rep.RegistryStr(), err)
	}
	var guarded http.RoundTripper = schemeGuard{s: s, next: s.transport}
	scheme := "https"
	if plain {
		scheme = "http" // or what the registry answered to: the library sees to that
	}
	if s.namedPlain(host) {
		guarded = noTLS{host: rep.RegistryStr(), next: guarded}
	}
	r := &repo{s: s, host: rep.RegistryStr(), base: scheme + "://" + rep.RegistryStr() + "/v2/" + rep.RepositoryStr(), tries: tries}
	var authed http.RoundTripper
	err = r.retry(ctx, func() error {
		authed, err = s.ping(ctx, rep, auth, guarded, append([]string{rep.Scope(action)}, more...))
		return err
	})
	if err != nil {
		return nil, registryError("registry "+rep.RegistryStr(), err)
	}
	r.client = &http.Client{Transport: authed, CheckRedirect: fewRedirects}
	return r, nil
}

// ping asks a registry how it wants to be spoken to, and gets a token from it where it wants one. What it returns asks for
// others when that has expired.
func (s *Store) ping(ctx context.Context, rep name.Repository, auth authn.Authenticator, t http.RoundTripper, scopes []string) (http.RoundTripper, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(s.stall, func() {
		cancel(fmt.Errorf("registry has not answered for %s: %w", s.stall, errs.ErrUnavailable))
	}).Stop()
	authed, err := transport.NewWithContext(ctx, rep.Registry, auth, t, scopes)
	return authed, ctxError(ctx, err)
}

func fewRedirects(_ *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errRedirects
	}
	return nil
}

var errRedirects = fmt.Errorf("registry redirects more than 10 times: %w", errs.ErrUnavailable)

// newTransport is http.DefaultTransport without proxies from the environment.
func newTransport(cfg Config) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:               cfg.Proxy,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second,
	}
	if len(cfg.CA) == 0 {
		return t, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(cfg.CA) {
		return nil, fmt.Errorf("Registry.CA has no certificate that can be read, it must be in PEM: %w", errs.ErrInvalid)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// setTransport makes what carries requests to registries.
func (s *Store) setTransport() error {
	s.backoff, s.stall, s.transport, s.idle = firstBackoff, stallTimeout, s.cfg.Transport, func() {}
	if s.transport != nil {
		if len(s.cfg.CA) > 0 || s.cfg.Proxy != nil {
			return fmt.Errorf("Registry.Transport is set, so CA and Proxy must be its own: %w", errs.ErrInvalid)
		}
		return nil
	}
	t, err := newTransport(s.cfg)
	if err != nil {
		return err
	}
	s.transport, s.idle = t, t.CloseIdleConnections
	return nil
}

// dockerHub is the registry of references without one, which has two names.
const dockerHub, dockerIndex = "docker.io", "index.docker.io"

// checkMirrors returns the mirrors by the registry's name as references have it.
func checkMirrors(in map[string][]string) (map[string][]string, error) {
	out := map[string][]string{}
	for host, mirrors := range in {
		if named, err := reference.ParseNormalizedNamed(host + "/a/b"); err != nil || reference.Domain(named) != strings.Replace(host, dockerIndex, dockerHub, 1) {
			return nil, fmt.Errorf("Registry.Mirrors[%q]: the key is no registry's host and port: %w", host, errs.ErrInvalid)
		}
		if host == dockerIndex {
			host = dockerHub
		}
		for _, m := range mirrors {
			first, _, _ := strings.Cut(m, "/")
			if named, err := reference.ParseNormalizedNamed(m + "/a/b"); err != nil || reference.Domain(named) != first {
				return nil, fmt.Errorf("Registry.Mirrors[%q] has %q, use host[:port][/path] without a scheme: %w", host, m, errs.ErrInvalid)
			}
		}
		out[host] = append(out[host], mirrors...)
	}
	return out, nil
}

// places are where a repository is fetched from: the mirrors of its registry in their order, then the registry.
type places struct {
	s     *Store
	named []reference.Named

	mu    sync.Mutex
	repos []*repo // by place; nil where it has not been connected to
	first int     // the place to ask first
}

func (s *Store) places(named reference.Named) (*places, error) {
	p := &places{s: s}
	for _, m := range s.mirrors[reference.Domain(named)] {
		at, err := reference.WithName(m + "/" + reference.Path(named))
		if err != nil {
			return nil, fmt.Errorf("%s at the mirror %s: %w (%w)", named, m, err, errs.ErrInvalid)
		}
		p.named = append(p.named, at)
	}
	p.named = append(p.named, reference.TrimNamed(named))
	p.repos = make([]*repo, len(p.named))
	return p, nil
}

func (p *places) repo(ctx context.Context, i int) (*repo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repos[i] != nil {
		return p.repos[i], nil
	}
	tries := maxTries
	if i < len(p.named)-1 {
		tries = mirrorTries
	}
	r, err := p.s.connect(ctx, p.named[i], tries, transport.PullScope)
	p.repos[i] = r
	return r, err
}

// try calls do with one place after the other, from the one that served last, until one succeeds. The error is the
// registry's own, and tells what became of the mirrors.
func (p *places) try(ctx context.Context, do func(*repo) error) error {
	p.mu.Lock()
	order := []int{p.first}
	p.mu.Unlock()
	for i := range p.named {
		if i != order[0] {
			order = append(order, i)
		}
	}
	var own error
	var others []string
	for _, i := range order {
		r, err := p.repo(ctx, i)
		if err == nil {
			err = do(r)
		}
		switch {
		case err == nil:
			p.mu.Lock()
			p.first = i
			p.mu.Unlock()
			return nil
		case ctx.Err() != nil:
			return ctxError(ctx, err)
		case isWriteError(err): // the store's own trouble
			return err
		case i == len(p.named)-1:
			own = err
		default:
			p.s.log.Info("mirror of a registry is passed over", "mirror", p.named[i].Name(), "err", err)
			others = append(others, fmt.Sprintf("mirror %s: %v", reference.Domain(p.named[i]), err))
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%w (%s)", own, strings.Join(others, "; "))
	}
	return own
}

// manifest fetches an index or manifest by tag or digest.
func (p *places) manifest(ctx context.Context, ref string, want digest.Digest) (data []byte, err error) {
	err = p.try(ctx, func(r *repo) (err error) {
		data, err = r.manifest(ctx, ref, want)
		return err
	})
	return data, err
}
