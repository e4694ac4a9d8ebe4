package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// saved is an image of an archive that is being written.
type saved struct {
	rec   record
	names []string // that it was asked for by
}

// Save writes images as a tar archive that is an OCI layout and a Docker archive at once: index.json and manifest.json
// speak of the same blobs. Each image has the names by which refs ask for it; one that is asked for by ID has none. The
// same images give the same bytes. Blobs are verified while they are read: one that was changed on disk is removed and
// ends the archive in the middle with errs.ErrCorrupt. Other errors come before the first byte, or are those of w.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) error {
	ctx, end, err := s.begin(ctx, true)
	if err != nil {
		return err
	}
	defer end()
	if err := s.saveAll(ctx, w, refs); err != nil {
		return fmt.Errorf("save %s: %w", strings.Join(refs, ", "), err)
	}
	return nil
}

func (s *Store) saveAll(ctx context.Context, w io.Writer, refs []string) error {
	images, err := s.wanted(ctx, refs)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	written := map[digest.Digest]bool{}
	for _, img := range images {
		for _, d := range img.rec.blobs() {
			if written[d] {
				continue
			}
			written[d] = true
			if err := s.saveBlob(ctx, tw, d); err != nil {
				return err
			}
		}
	}
	for name, v := range savedIndexes(images) {
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		if err := saveFile(tw, name, int64(len(data)), strings.NewReader(string(data))); err != nil {
			return err
		}
	}
	return tw.Close()
}

// wanted finds the images in the order they are asked for, each once.
func (s *Store) wanted(ctx context.Context, refs []string) ([]*saved, error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("no image is named: %w", errs.ErrInvalid)
	}
	var out []*saved
	for _, ref := range refs {
		rec, err := s.resolve(ref)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(out, func(o *saved) bool { return o.rec.ID == rec.ID })
		if i < 0 {
			if err := s.hasBlobs(ctx, rec); err != nil {
				return nil, fmt.Errorf("image %q is not whole, pull or load it again: %w", ref, err)
			}
			i, out = len(out), append(out, &saved{rec: rec})
		}
		name, err := Normalize(ref)
		if err != nil {
			continue // an ID
		}
		if r, err := s.readRef(s.refPath(name)); err == nil && r.ID == rec.ID && !slices.Contains(out[i].names, name) {
			out[i].names = append(out[i].names, name)
		}
	}
	return out, nil
}

func (s *Store) saveBlob(ctx context.Context, tw *tar.Writer, d digest.Digest) error {
	r, err := s.openVerified(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return saveFile(tw, blobName(d), r.file.size, r)
}

func saveFile(tw *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, r, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// savedIndexes yields the files that say which images the archive has.
func savedIndexes(images []*saved) func(func(string, any) bool) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	docker := []dockerImage{}
	for _, img := range images {
		d := img.rec.Manifest
		d.Platform = &img.rec.Platform
		if len(img.names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		entry := dockerImage{Config: blobName(img.rec.ID), RepoTags: []string{}, Layers: []string{}}
		for _, name := range img.names {
			d.Annotations = map[string]string{containerdName: name}
			if named, err := parseRef(name); err == nil {
				if t, ok := named.(reference.Tagged); ok {
					d.Annotations[ocispec.AnnotationRefName] = t.Tag()
					entry.RepoTags = append(entry.RepoTags, reference.FamiliarString(named))
				}
			}
			index.Manifests = append(index.Manifests, d)
		}
		for _, l := range img.rec.Layers {
			entry.Layers = append(entry.Layers, blobName(l.Digest))
		}
		docker = append(docker, entry)
	}
	return func(yield func(string, any) bool) {
		_ = yield(ocispec.ImageIndexFile, index) && yield("manifest.json", docker) &&
			yield(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	}
}

// verifiedBlob reads a blob and compares its digest at the end. One that was changed on disk is removed. It shows nothing of
// its file but Read and Close: what finds more there, such as sendfile, would read past the check.
type verifiedBlob struct {
	file blobReader
	b    *blobStore
	src  *source
	d    digest.Digest
	hash hash.Hash
	left int64
}

func (s *Store) openVerified(ctx context.Context, d digest.Digest) (*verifiedBlob, error) {
	r, err := s.blobs.reader(d)
	if err != nil {
		return nil, err
	}
	return &verifiedBlob{file: r, b: s.blobs, src: &source{ctx: ctx, r: r.File}, d: d, hash: digest.SHA256.Hash(), left: r.size}, nil
}

// Read reads the blob. The last bytes come only after the digest has been found right.
func (v *verifiedBlob) Read(p []byte) (int, error) {
	if v.left <= 0 {
		return 0, io.EOF
	}
	n, err := v.src.Read(p[:min(int64(len(p)), v.left)])
	v.hash.Write(p[:n])
	v.left -= int64(n)
	if (v.left <= 0 || err == io.EOF) && digest.NewDigest(digest.SHA256, v.hash) != v.d {
		return 0, v.b.corrupt(v.d)
	}
	return n, err
}

// Close closes the file.
func (v *verifiedBlob) Close() error { return v.file.Close() }
