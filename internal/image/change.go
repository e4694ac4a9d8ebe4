package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// configChange is what a commit or a build does to a configuration.
type configChange struct {
	change  func(*ocispec.ImageConfig)
	layers  []digest.Digest
	history []ocispec.History
	author  string
	created time.Time // zero is none
}

// entry makes an entry of the history.
func (c *configChange) entry(createdBy, comment string) ocispec.History {
	h := ocispec.History{CreatedBy: createdBy, Author: c.author, Comment: comment}
	if !c.created.IsZero() {
		h.Created = &c.created
	}
	return h
}

// apply returns the configuration with the change. What is not known of it stays as it is.
func (c *configChange) apply(base []byte) ([]byte, error) {
	parsed, err := parseConfig(base)
	if err != nil {
		return nil, err
	}
	var doc, config map[string]json.RawMessage
	if err := json.Unmarshal(base, &doc); err != nil {
		return nil, fmt.Errorf("configuration: %w (%w)", err, errs.ErrInvalid)
	}
	if raw := doc["config"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &config); err != nil {
			return nil, fmt.Errorf("configuration: %w (%w)", err, errs.ErrInvalid)
		}
	}
	before, err := fields(parsed.Config)
	if err != nil {
		return nil, err
	}
	if c.change != nil {
		c.change(&parsed.Config)
	}
	after, err := fields(parsed.Config)
	if err != nil {
		return nil, err
	}
	if config == nil {
		config = map[string]json.RawMessage{}
	}
	maps.DeleteFunc(config, func(k string, _ json.RawMessage) bool { return before[k] != nil })
	maps.Copy(config, after)
	parsed.RootFS.Type = "layers"
	parsed.RootFS.DiffIDs = append(parsed.RootFS.DiffIDs, c.layers...)
	set := map[string]any{"config": config, "rootfs": parsed.RootFS, "history": append(parsed.History, c.history...)}
	if c.author != "" {
		set["author"] = c.author
	}
	if delete(doc, "created"); !c.created.IsZero() {
		set["created"] = c.created
	}
	for k, v := range set {
		if doc[k], err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("encode configuration: %w", err)
		}
	}
	return json.Marshal(doc)
}

// fields are the fields of a value that its JSON has.
func fields(v any) (out map[string]json.RawMessage, err error) {
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return out, nil
}
