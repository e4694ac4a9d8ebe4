package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushOptions tunes Push. The zero value works.
type PushOptions struct {
	// Progress is told how the layers are getting on, as PullOptions.Progress is.
	Progress func(LayerProgress)
}

// Push sends the image that has the name ref to the registry of that name, and returns it as the registry has it. Blobs
// that the registry has are not sent; those that another repository there has, by the names in this store, are mounted
// from it. Layers that were made here uncompressed are compressed first, which gives the image another manifest, here too.
//
// Errors wrap errs.ErrInvalid (a reference that is no name, or has a digest), errs.ErrNotFound (no image of that name),
// errs.ErrUnavailable (the registry cannot be reached or refuses) or errs.ErrCorrupt (a blob was changed on disk). After
// an error the registry's tag is what it was.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (Image, error) {
	return s.transfer(ctx, "push", ref, func(ctx context.Context, named reference.Named) (Image, error) {
		return s.push(ctx, named, o)
	})
}

func (s *Store) push(ctx context.Context, named reference.Named, o PushOptions) (Image, error) {
	tagged, ok := named.(reference.Tagged)
	if !ok || digestOf(named) != "" {
		return Image{}, fmt.Errorf("reference has a digest, push a tag: %w", errs.ErrInvalid)
	}
	rec, err := s.resolve(named.String())
	if err != nil {
		return Image{}, err
	}
	if rec, err = s.compressLayers(ctx, rec); err != nil {
		return Image{}, err
	}
	if err := s.hasBlobs(ctx, rec); err != nil {
		return Image{}, fmt.Errorf("image is not whole, pull or load it again: %w", err)
	}
	manifest, err := s.blobs.read(rec.Manifest.Digest, s.cfg.Limits.ManifestSize)
	if err != nil {
		return Image{}, err
	}
	from, err := s.mountable(named, rec)
	if err != nil {
		return Image{}, err
	}
	r, err := s.connect(ctx, named, maxTries, transport.PushScope, pullScopes(from)...)
	if err != nil {
		return Image{}, err
	}
	if err := s.pushBlobs(ctx, r, rec, from, o.Progress); err != nil {
		return Image{}, err
	}
	if err := r.putManifest(ctx, tagged.Tag(), rec.Manifest, manifest); err != nil {
		return Image{}, err
	}
	refs, err := s.refs(func(error) {})
	if err != nil {
		return Image{}, err
	}
	return s.image(rec, refs[rec.ID])
}

// mountable tells for layers which other repository of the same registry has them, by the names of images here.
func (s *Store) mountable(named reference.Named, rec record) (map[digest.Digest]string, error) {
	recs, err := s.records(func(error) {})
	if err != nil {
		return nil, err
	}
	refs, err := s.refs(func(error) {})
	if err != nil {
		return nil, err
	}
	mine := map[digest.Digest]bool{}
	for _, l := range rec.Layers {
		mine[l.Digest] = true
	}
	from := map[digest.Digest]string{}
	for _, other := range recs {
		for _, ref := range refs[other.ID] {
			at, err := parseRef(ref.Name)
			if err != nil || reference.Domain(at) != reference.Domain(named) || at.Name() == named.Name() {
				continue
			}
			for _, l := range other.Layers {
				if mine[l.Digest] && from[l.Digest] == "" {
					from[l.Digest] = reference.Path(at)
				}
			}
		}
	}
	return from, nil
}

// pullScopes are those a registry is asked for so that it lets layers be mounted.
func pullScopes(from map[digest.Digest]string) []string {
	var out []string
	for _, path := range from {
		if scope := "repository:" + path + ":pull"; !slices.Contains(out, scope) {
			out = append(out, scope)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), 8)]
}

func (s *Store) pushBlobs(ctx context.Context, r *repo, rec record, from map[digest.Digest]string, report func(LayerProgress)) error {
	rep := &reporter{fn: report}
	defer rep.stop() // a transport may read on after a request has failed
	tell := rep.tell
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Limits.Parallel)
	seen := map[digest.Digest]bool{}
	for _, l := range rec.Layers {
		tell(LayerProgress{Layer: l.Digest, State: LayerWaiting, Total: l.Size})
	}
	for i, l := range rec.Layers {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		g.Go(func() error {
			if err := s.pushBlob(gctx, r, l.Digest, from[l.Digest], tell); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		if err := s.pushBlob(gctx, r, rec.ID, "", func(LayerProgress) {}); err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
		return nil
	})
	return ctxError(ctx, g.Wait())
}

// pushBlob brings a blob into the repository.
func (s *Store) pushBlob(ctx context.Context, r *repo, d digest.Digest, from string, tell func(LayerProgress)) error {
	info, err := s.blobs.Info(ctx, d)
	if err != nil {
		return err
	}
	p := LayerProgress{Layer: d, Total: info.Size}
	err = r.retry(ctx, func() error {
		has, err := r.hasBlob(ctx, d)
		if has {
			p.State = LayerExists
		}
		return err
	})
	if err == nil && p.State == "" {
		err = r.retry(ctx, func() error {
			to, err := r.startUpload(ctx, d, from)
			if err != nil {
				return err
			}
			if to == nil {
				p.State = LayerMounted
				return nil
			}
			p.State = LayerDone
			return s.upload(ctx, r, to, d, info.Size, tell)
		})
	}
	if err != nil {
		return registryError("blob "+d.String(), err)
	}
	p.Done = p.Total
	tell(p)
	return nil
}

// send makes a request and returns an answer with one of the statuses. Its body must be closed.
func (r *repo) send(req *http.Request, statuses ...int) (*http.Response, error) {
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, statuses...); err != nil {
		_ = resp.Body.Close()
		return nil, &httpError{err: err, status: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"))}
	}
	return resp, nil
}

func (r *repo) hasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, r.base+"/blobs/"+d.String(), nil)
	if err != nil {
		return false, fmt.Errorf("ask for blob: %w", err)
	}
	resp, err := r.answered(req, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK, nil
}

// startUpload asks where a blob is to be sent; nil says that it is there, mounted from another repository.
func (r *repo) startUpload(ctx context.Context, d digest.Digest, from string) (*url.URL, error) {
	at := r.base + "/blobs/uploads/"
	if from != "" {
		at += "?" + url.Values{"mount": {d.String()}, "from": {from}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	resp, err := r.answered(req, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusCreated {
		return nil, nil
	}
	to, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("registry does not say where to send a blob: %w (%w)", err, errs.ErrUnavailable)
	}
	q := to.Query()
	q.Set("digest", d.String())
	to.RawQuery = q.Encode()
	return to, nil
}

// upload sends a blob in one request.
func (s *Store) upload(ctx context.Context, r *repo, to *url.URL, d digest.Digest, size int64, tell func(LayerProgress)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(s.stall, func() {
		cancel(fmt.Errorf("registry took nothing for %s: %w", s.stall, errs.ErrUnavailable))
	})
	defer stall.Stop()
	var last time.Time
	var sent int64
	open := func() (io.ReadCloser, error) {
		blob, err := s.openVerified(ctx, d)
		if err != nil {
			return nil, err
		}
		sent = 0
		return &sentBlob{verifiedBlob: blob, each: func(n int) {
			sent += int64(n)
			if sent >= size {
				stall.Reset(10 * s.stall) // it may take long over the digest
			} else {
				stall.Reset(s.stall)
			}
			if now := time.Now(); now.Sub(last) > 50*time.Millisecond {
				last = now
				tell(LayerProgress{Layer: d, State: LayerRunning, Done: sent, Total: size})
			}
		}}, nil
	}
	body, err := open()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), body)
	if err != nil {
		_ = body.Close()
		return fmt.Errorf("send blob: %w", err)
	}
	req.ContentLength, req.GetBody = size, open
	req.Header.Set("Content-Type", "application/octet-stream")
	if size == 0 {
		req.Body = http.NoBody
	}
	resp, err := r.send(req, http.StatusCreated, http.StatusNoContent)
	if err != nil {
		return ctxError(ctx, err)
	}
	return resp.Body.Close()
}

// sentBlob tells how much of a blob has been sent.
type sentBlob struct {
	*verifiedBlob
	each func(n int)
}

// Read reads the blob.
func (b *sentBlob) Read(p []byte) (int, error) {
	n, err := b.verifiedBlob.Read(p)
	b.each(n)
	return n, err
}

// putManifest gives the manifest its tag, which makes the image visible.
func (r *repo) putManifest(ctx context.Context, tag string, desc ocispec.Descriptor, data []byte) error {
	err := r.retry(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, r.base+"/manifests/"+tag, bytes.NewReader(data))
		if err != nil {
			return fmt.Errorf("send manifest: %w", err)
		}
		req.Header.Set("Content-Type", desc.MediaType)
		resp, err := r.answered(req, http.StatusOK, http.StatusCreated, http.StatusAccepted)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return registryError("manifest", err)
}

// reporter passes progress on, one call at a time, until it is stopped.
type reporter struct {
	mu sync.Mutex
	fn func(LayerProgress)
}

func (r *reporter) tell(p LayerProgress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fn != nil {
		r.fn(p)
	}
}

func (r *reporter) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn = nil
}
