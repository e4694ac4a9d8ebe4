package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PullOptions tunes Pull.
type PullOptions struct {
	Platform ocispec.Platform // chosen from an index; the zero value is Config.Platform
	// Progress is told how the layers are getting on; nil is not. Calls come one at a time, from goroutines of the pull,
	// and hold it up while they last; none comes after Pull has returned.
	Progress func(LayerProgress)
}

// LayerState is what becomes of a layer in a pull or a push.
type LayerState string

// The states of a layer: one of the first two may come before one of the others.
const (
	LayerWaiting LayerState = "waiting" // for its turn, or for another call that works on it
	LayerRunning LayerState = "running" // is being transferred, and converted at once in a pull
	LayerDone    LayerState = "done"
	LayerExists  LayerState = "exists"  // was there before
	LayerMounted LayerState = "mounted" // was in another repository of the registry that it is pushed to
)

// LayerProgress is a step of one layer.
type LayerProgress struct {
	Layer digest.Digest // of the blob
	State LayerState
	Done  int64 // bytes that are there
	Total int64 // bytes of the blob
}

// Pull fetches an image from its registry, under the name ref. Layers are verified, stored and converted while they come,
// several at a time, and go on where a connection broke off; those that are there already are not fetched. An index is
// resolved by platform; where nothing fits the error wraps errs.ErrUnsupported and names the platforms. Other errors wrap
// errs.ErrInvalid (reference, manifest), errs.ErrNotFound (unknown image), errs.ErrUnavailable (registry cannot be reached
// or refuses) or errs.ErrCorrupt (content has not the digest it should). After an error no name has changed; finished
// layers stay in the store until Prune, so that the next pull goes on from there.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	return s.transfer(ctx, "pull", ref, func(ctx context.Context, named reference.Named) (Image, error) {
		return s.pull(ctx, named, o)
	})
}

func (s *Store) pull(ctx context.Context, named reference.Named, o PullOptions) (Image, error) {
	if o.Platform.OS == "" && o.Platform.Architecture == "" {
		o.Platform = s.cfg.Platform
	}
	r, err := s.places(named)
	if err != nil {
		return Image{}, err
	}
	tag, want := "", digestOf(named)
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	if want != "" {
		tag = want.String()
	}
	data, err := r.manifest(ctx, tag, want)
	if err != nil {
		return Image{}, err
	}
	target := digest.FromBytes(data)
	data, doc, err := s.pullManifest(ctx, r, data, o.Platform)
	if err != nil {
		return Image{}, err
	}
	config, err := s.pullConfig(ctx, r, *doc.Config)
	if err != nil {
		return Image{}, err
	}
	rec, err := parseImage(describe(data, doc), doc, config, o.Platform)
	if err != nil {
		return Image{}, err
	}
	if err := s.pullLayers(ctx, r, rec.Layers, o.Progress); err != nil {
		return Image{}, err
	}
	for _, blob := range [][]byte{config, data} {
		if _, err := s.blobs.write(ctx, blob); err != nil {
			return Image{}, err
		}
	}
	rec.Loaded = time.Now().UTC()
	if err := s.save(ctx, rec, []string{named.String()}, target); err != nil {
		return Image{}, err
	}
	refs, err := s.refs(func(error) {})
	if err != nil {
		return Image{}, err
	}
	return s.image(rec, refs[rec.ID])
}

// pullManifest follows indexes to the manifest for the platform.
func (s *Store) pullManifest(ctx context.Context, r *places, data []byte, want ocispec.Platform) ([]byte, *document, error) {
	for range maxDepth {
		doc, err := parseDocument(data, s.cfg.Limits)
		if err != nil || !doc.isIndex() {
			return data, doc, err
		}
		next, err := choose(doc.Manifests, want)
		if err != nil {
			return nil, nil, err
		}
		if data, err = r.manifest(ctx, next.Digest.String(), next.Digest); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("index of indexes, more than %d deep: %w", maxDepth, errs.ErrInvalid)
}

func (s *Store) pullConfig(ctx context.Context, r *places, desc ocispec.Descriptor) ([]byte, error) {
	if data, err := s.blobs.read(desc.Digest, s.cfg.Limits.ConfigSize); err == nil {
		return data, nil
	}
	var data []byte
	err := r.try(ctx, func(r *repo) (err error) {
		data, err = r.small(ctx, "/blobs/"+desc.Digest.String(), nil, desc.Digest, s.cfg.Limits.ConfigSize)
		return err
	})
	return data, err
}

func (s *Store) pullLayers(ctx context.Context, r *places, layers []layerRecord, report func(LayerProgress)) error {
	rep := &reporter{fn: report}
	tell := rep.tell
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Limits.Parallel)
	for _, l := range layers {
		tell(LayerProgress{Layer: l.Digest, State: LayerWaiting, Total: l.Size})
	}
	for i, l := range layers {
		g.Go(func() error {
			if err := s.pullLayer(gctx, r, LayerInfo(l), tell); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			return nil
		})
	}
	return ctxError(ctx, g.Wait())
}

// pullLayer brings a blob and its layer image into the store. Whoever has the blob's lock does the work.
func (s *Store) pullLayer(ctx context.Context, r *places, l LayerInfo, tell func(LayerProgress)) error {
	unlock, err := s.lockWork(ctx, "blob-"+l.Digest.Encoded())
	if err != nil {
		return err
	}
	defer unlock()
	info, err := s.blobs.Info(ctx, l.Digest)
	switch {
	case err == nil && info.Size == l.Size:
		if _, err := s.ensureLayer(ctx, l); err == nil || !errors.Is(err, errs.ErrNotFound) {
			tell(LayerProgress{Layer: l.Digest, State: LayerExists, Done: l.Size, Total: l.Size})
			return err
		}
		// The blob turned out to be damaged and is gone.
	case err == nil:
		return fmt.Errorf("blob %s has %d bytes, the manifest says %d: %w", l.Digest, info.Size, l.Size, errs.ErrInvalid)
	case !errors.Is(err, errs.ErrNotFound):
		return err
	}
	var last time.Time
	seen := func(off int64) {
		if now := time.Now(); now.Sub(last) > 50*time.Millisecond {
			last = now
			tell(LayerProgress{Layer: l.Digest, State: LayerRunning, Done: off, Total: l.Size})
		}
	}
	if err := r.try(ctx, func(r *repo) error { return s.receive(ctx, r, l, seen) }); err != nil {
		return err
	}
	tell(LayerProgress{Layer: l.Digest, State: LayerDone, Done: l.Size, Total: l.Size})
	return nil
}

// receive fetches a blob from one place, behind what an earlier pull left of it. Where that turns out to be damaged it
// begins anew.
func (s *Store) receive(ctx context.Context, r *repo, l LayerInfo, seen func(int64)) error {
	have, err := s.receiveLayer(ctx, r, l, seen)
	if have > 0 && errors.Is(err, errs.ErrCorrupt) {
		s.log.Warn("blob is fetched from its beginning", "digest", l.Digest, "err", err)
		_, err = s.receiveLayer(ctx, r, l, seen)
	}
	return err
}

// receiveLayer stores a blob and makes its layer image from one stream. It returns how much of the blob was there. The
// caller holds the blob's lock.
func (s *Store) receiveLayer(ctx context.Context, r *repo, l LayerInfo, seen func(int64)) (have int64, err error) {
	w, err := s.blobs.resume(l.Digest, l.Size)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, w.end(err)) }()
	seen(w.have)
	stream := &blobStream{ctx: ctx, repo: r, off: w.have, seen: seen, desc: ocispec.Descriptor{Digest: l.Digest, Size: l.Size}}
	defer func() { _ = stream.Close() }()
	w.rest = stream
	unlock, err := s.lockWork(ctx, "layer-"+l.DiffID.Encoded())
	if err != nil {
		return w.have, err
	}
	defer unlock()
	_, cerr := s.findLayer(ctx, l.DiffID)
	if missing(cerr) {
		cerr = s.makeLayer(ctx, l.DiffID, w, nil)
	}
	if cerr != nil && !errors.Is(cerr, errReplan) && !errors.Is(cerr, errs.ErrCorrupt) && !errors.Is(cerr, errs.ErrInvalid) {
		return w.have, cerr
	}
	// The rest of the blob decides whether it is the blob that is wrong or what it holds.
	if _, err := io.Copy(io.Discard, w); err != nil {
		return w.have, err
	}
	if err := w.Commit(ctx, l.Size, l.Digest); err != nil {
		return w.have, err
	}
	if errors.Is(cerr, errReplan) {
		return w.have, s.convertBlob(ctx, l)
	}
	return w.have, cerr
}
