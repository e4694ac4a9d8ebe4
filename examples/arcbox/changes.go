package main

import (
	"encoding/json"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

func changeFlag(fs *pflag.FlagSet, changes *[]string) {
	fs.StringArrayVarP(changes, "change", "c", nil, "an `instruction` of a Dockerfile to apply, as 'CMD [\"sh\"]' or 'ENV A=b'")
}

// parseChanges reads instructions of a Dockerfile that change an image's configuration; nil is none.
func parseChanges(list []string) (func(*ocispec.ImageConfig), error) {
	if len(list) == 0 {
		return nil, nil
	}
	var all []func(*ocispec.ImageConfig)
	for _, text := range list {
		name, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
		rest = strings.TrimSpace(rest)
		do, err := parseChange(strings.ToUpper(name), rest)
		if err != nil {
			return nil, fmt.Errorf("flag --change %q: %w", text, err)
		}
		all = append(all, do)
	}
	return func(c *ocispec.ImageConfig) {
		for _, do := range all {
			do(c)
		}
	}, nil
}

func parseChange(name, rest string) (func(*ocispec.ImageConfig), error) {
	if rest == "" {
		return nil, fmt.Errorf("use INSTRUCTION VALUE")
	}
	switch name {
	case "CMD", "ENTRYPOINT":
		args, err := commandWords(rest)
		if err != nil {
			return nil, err
		}
		if name == "CMD" {
			return func(c *ocispec.ImageConfig) { c.Cmd = args }, nil
		}
		return func(c *ocispec.ImageConfig) { c.Entrypoint = args }, nil
	case "ENV", "LABEL":
		key, value, ok := strings.Cut(rest, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("use %s KEY=VALUE, once for each key", name)
		}
		value = strings.Trim(value, `"`)
		if name == "LABEL" {
			return func(c *ocispec.ImageConfig) { put(&c.Labels, key, value) }, nil
		}
		return func(c *ocispec.ImageConfig) { setEnv(c, key, value) }, nil
	case "EXPOSE":
		return func(c *ocispec.ImageConfig) {
			for _, p := range strings.Fields(rest) {
				if !strings.Contains(p, "/") {
					p += "/tcp"
				}
				put(&c.ExposedPorts, p, struct{}{})
			}
		}, nil
	case "VOLUME":
		return func(c *ocispec.ImageConfig) { put(&c.Volumes, rest, struct{}{}) }, nil
	case "USER":
		return func(c *ocispec.ImageConfig) { c.User = rest }, nil
	case "WORKDIR":
		return func(c *ocispec.ImageConfig) { c.WorkingDir = rest }, nil
	case "STOPSIGNAL":
		return func(c *ocispec.ImageConfig) { c.StopSignal = rest }, nil
	}
	return nil, fmt.Errorf("instruction %s: use CMD, ENTRYPOINT, ENV, LABEL, EXPOSE, VOLUME, USER, WORKDIR or STOPSIGNAL", name)
}

// commandWords reads a command: a JSON array of words, or a line for the shell.
func commandWords(text string) ([]string, error) {
	if !strings.HasPrefix(text, "[") {
		return []string{"/bin/sh", "-c", text}, nil
	}
	var out []string
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("no JSON array of words: %w", err)
	}
	return out, nil
}

func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

func setEnv(c *ocispec.ImageConfig, key, value string) {
	for i, kv := range c.Env {
		if strings.HasPrefix(kv, key+"=") {
			c.Env[i] = key + "=" + value
			return
		}
	}
	c.Env = append(c.Env, key+"="+value)
}
