package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, which mean the same as their OCI counterparts.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifestV1   = "application/vnd.docker.distribution.manifest.v1+json"
	dockerManifestV1S  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociForeign         = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// document is an index or a manifest: their fields do not overlap.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
}

func (d *document) isIndex() bool { return d.Config == nil && d.Manifests != nil }

// parseDocument reads an index or manifest and checks what the store relies on.
func parseDocument(data []byte, l Limits) (*document, error) {
	var d document
	if int64(len(data)) > l.ManifestSize {
		return nil, fmt.Errorf("manifest of %d bytes, at most %d: %w", len(data), l.ManifestSize, errs.ErrInvalid)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("manifest: %w (%w)", err, errs.ErrInvalid)
	}
	if d.SchemaVersion == 1 || d.MediaType == dockerManifestV1 || d.MediaType == dockerManifestV1S {
		return nil, fmt.Errorf("manifest of Docker's schema 1, which registries stopped serving: %w", errs.ErrUnsupported)
	}
	if (d.Config == nil) == (d.Manifests == nil) {
		return nil, fmt.Errorf("manifest is neither an image's nor an index: %w", errs.ErrInvalid)
	}
	for _, m := range d.Manifests {
		if err := checkDescriptor(m, l.ManifestSize); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	if d.isIndex() {
		return &d, nil
	}
	return &d, d.checkManifest(l)
}

func (d *document) checkManifest(l Limits) error {
	if t := d.Config.MediaType; t != "" && t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		return fmt.Errorf("manifest of %.100q, which is no container image: %w", t, errs.ErrUnsupported)
	}
	if err := checkDescriptor(*d.Config, l.ConfigSize); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if len(d.Layers) > l.Layers {
		return fmt.Errorf("image with %d layers, at most %d: %w", len(d.Layers), l.Layers, errs.ErrInvalid)
	}
	for i, layer := range d.Layers {
		if err := checkLayerType(layer.MediaType); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if err := checkDescriptor(layer, l.BlobSize); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor, limit int64) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > limit {
		return fmt.Errorf("%s has %d bytes, at most %d, raise the limit if that is right: %w", d.Digest, d.Size, limit, errs.ErrInvalid)
	}
	return nil
}

// checkLayerType refuses what is no archive of files. How an archive is compressed is told by its content.
func checkLayerType(t string) error {
	if strings.HasPrefix(t, dockerForeign) || strings.HasPrefix(t, ociForeign) {
		return fmt.Errorf("foreign layer (%s), whose content is not in the registry: %w", t, errs.ErrUnsupported)
	}
	if strings.HasPrefix(t, dockerLayer) || strings.HasPrefix(t, ocispec.MediaTypeImageLayer) {
		if strings.Contains(t, "encrypted") {
			return fmt.Errorf("encrypted layer (%s): %w", t, errs.ErrUnsupported)
		}
		return nil
	}
	return fmt.Errorf("layer of type %.100q: %w", t, errs.ErrUnsupported)
}

// imageConfig is the configuration of an image with Docker's extension.
type imageConfig struct {
	ocispec.Image
	healthcheck []byte
}

func parseConfig(data []byte) (*imageConfig, error) {
	var c imageConfig
	if err := json.Unmarshal(data, &c.Image); err != nil {
		return nil, fmt.Errorf("%w (%w)", err, errs.ErrInvalid)
	}
	var ext struct {
		Config struct {
			Healthcheck json.RawMessage
		} `json:"config"`
	}
	if err := json.Unmarshal(data, &ext); err != nil {
		return nil, fmt.Errorf("%w (%w)", err, errs.ErrInvalid)
	}
	if string(ext.Config.Healthcheck) != "null" {
		c.healthcheck = ext.Config.Healthcheck
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("DiffID %d: %w", i, err)
		}
	}
	return &c, nil
}

// parseImage reads the configuration that belongs to a manifest and joins their layers.
func parseImage(manifest ocispec.Descriptor, doc *document, config []byte, want ocispec.Platform) (record, error) {
	cfg, err := parseConfig(config)
	if err != nil {
		return record{}, fmt.Errorf("configuration %s: %w", doc.Config.Digest, err)
	}
	if n := len(cfg.RootFS.DiffIDs); n != len(doc.Layers) {
		return record{}, fmt.Errorf("manifest has %d layers, its configuration %d: %w", len(doc.Layers), n, errs.ErrInvalid)
	}
	has := cfg.Platform
	if has.OS == "" {
		has.OS = want.OS
	}
	if has.Architecture == "" {
		has.Architecture = want.Architecture
	}
	if !runsOn(has, want) {
		return record{}, wrongPlatform(want, []ocispec.Platform{has})
	}
	rec := record{ID: doc.Config.Digest, Manifest: manifest, Config: *doc.Config, Platform: has}
	for i, l := range doc.Layers {
		rec.Layers = append(rec.Layers, layerRecord{
			DiffID: cfg.RootFS.DiffIDs[i], Digest: l.Digest, Size: l.Size, MediaType: l.MediaType,
		})
	}
	return rec, nil
}

// variant returns the variant of a platform with the default of its architecture filled in.
func variant(p ocispec.Platform) string {
	switch {
	case p.Variant != "":
		return p.Variant
	case p.Architecture == "arm64":
		return "v8"
	case p.Architecture == "amd64":
		return "v1"
	case p.Architecture == "arm":
		return "v7"
	}
	return ""
}

// runsOn tells whether an image of platform has runs where want is asked for.
func runsOn(has, want ocispec.Platform) bool {
	return has.OS == want.OS && has.Architecture == want.Architecture && variant(has) == variant(want)
}

// choose returns the first manifest of an index that runs on want. Those without a platform are not chosen: they are
// attestations and other attachments.
func choose(manifests []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	var others []ocispec.Platform
	for _, m := range manifests {
		switch {
		case m.Platform == nil || m.Platform.OS == "unknown":
		case runsOn(*m.Platform, want):
			return m, nil
		default:
			others = append(others, *m.Platform)
		}
	}
	// An index of one image that names no platform: the configuration will tell.
	if len(others) == 0 && len(manifests) == 1 && manifests[0].Platform == nil {
		return manifests[0], nil
	}
	return ocispec.Descriptor{}, wrongPlatform(want, others)
}

func wrongPlatform(want ocispec.Platform, has []ocispec.Platform) error {
	names := make([]string, 0, len(has))
	for _, p := range has {
		names = append(names, platformName(p))
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	return &platformError{want: platformName(want), has: strings.Join(names, ", ")}
}

// platformError says that an image runs on other platforms than the one asked for. It wraps errs.ErrUnsupported.
type platformError struct{ want, has string }

// Error names the platforms.
func (e *platformError) Error() string {
	return fmt.Sprintf("image is not for %s but for %.500s: %v", e.want, e.has, errs.ErrUnsupported)
}

// Unwrap returns errs.ErrUnsupported.
func (e *platformError) Unwrap() error { return errs.ErrUnsupported }

func isPlatform(err error) bool {
	var p *platformError
	return errors.As(err, &p)
}

func platformName(p ocispec.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// describe makes the descriptor of a manifest that is at hand.
func describe(data []byte, doc *document) ocispec.Descriptor {
	t := doc.MediaType
	if t == "" {
		t = ocispec.MediaTypeImageManifest
		if doc.isIndex() {
			t = ocispec.MediaTypeImageIndex
		}
	}
	return ocispec.Descriptor{MediaType: t, Digest: digest.FromBytes(data), Size: int64(len(data))}
}
