package container

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestCompileArgs(t *testing.T) {
	img := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}}
	tests := []struct {
		name string
		spec Spec
		cfg  ocispec.ImageConfig
		want []string
	}{
		{"image's own", Spec{}, img, []string{"/entry", "a", "b"}},
		{"args replace cmd", Spec{Args: []string{"x"}}, img, []string{"/entry", "x"}},
		{"entrypoint drops cmd", Spec{Entrypoint: []string{"/sh"}}, img, []string{"/sh"}},
		{"empty entrypoint clears", Spec{Entrypoint: []string{}, Args: []string{"x"}}, img, []string{"x"}},
		{"both", Spec{Entrypoint: []string{"/sh"}, Args: []string{"-c", "y"}}, img, []string{"/sh", "-c", "y"}},
		{"cmd only", Spec{}, ocispec.ImageConfig{Cmd: []string{"c"}}, []string{"c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := compile(testID, tt.spec, tt.cfg, nil)
			require.NoError(t, err)
			require.Equal(t, tt.want, req.Process.Args)
		})
	}
}

func TestCompileHonoursImageConfig(t *testing.T) {
	cfg := ocispec.ImageConfig{
		Cmd: []string{"c"}, Env: []string{"PATH=/x", "A=1", "B=2"}, WorkingDir: "/w", User: "app",
	}
	req, err := compile(testID, Spec{Env: []string{"A=9", "B", "C=3"}, TTY: true, Stdin: true}, cfg, []api.Layer{{Serial: "l"}})
	require.NoError(t, err)
	require.Equal(t, api.CreateRequest{
		ID: testID, Layers: []api.Layer{{Serial: "l"}}, Hostname: testID[:12],
		Process: api.Process{
			Args: []string{"c"}, Env: []string{"PATH=/x", "A=9", "C=3", "TERM=xterm"},
			Cwd: "/w", User: "app", TTY: true, Stdin: true,
		},
	}, req)

	req, err = compile(testID, Spec{WorkingDir: "/v", User: "0:0", Hostname: "h"}, cfg, nil)
	require.NoError(t, err)
	require.Equal(t, "/v", req.Process.Cwd)
	require.Equal(t, "0:0", req.Process.User)
	require.Equal(t, "h", req.Hostname)

	req, err = compile(testID, Spec{}, ocispec.ImageConfig{Cmd: []string{"c"}, WorkingDir: "rel"}, nil)
	require.NoError(t, err)
	require.Equal(t, "/rel", req.Process.Cwd)
	require.Equal(t, []string{defaultPath}, req.Process.Env)
}

func TestCompileRefusesNoCommand(t *testing.T) {
	for _, args := range [][]string{nil, {""}} {
		_, err := compile(testID, Spec{Image: "x", Args: args}, ocispec.ImageConfig{}, nil)
		require.ErrorIs(t, err, errs.ErrInvalid)
	}
	_, err := compile(testID, Spec{}, ocispec.ImageConfig{Cmd: []string{"a\x00b"}}, nil)
	require.ErrorIs(t, err, errs.ErrInvalid, "a hostile image config is held to the limits")
}

func TestSpecValidation(t *testing.T) {
	ok := Spec{Image: "busybox"}
	require.NoError(t, ok.Validate())
	bad := map[string]func(*Spec){
		"name slash":      func(s *Spec) { s.Name = "../x" },
		"name dash first": func(s *Spec) { s.Name = "-x" },
		"name long":       func(s *Spec) { s.Name = strings.Repeat("a", 129) },
		"no image":        func(s *Spec) { s.Image = "" },
		"hostname":        func(s *Spec) { s.Hostname = "a b" },
		"relative cwd":    func(s *Spec) { s.WorkingDir = "tmp" },
		"env no key":      func(s *Spec) { s.Env = []string{"=x"} },
		"nul":             func(s *Spec) { s.Args = []string{"a\x00"} },
		"long string":     func(s *Spec) { s.Args = []string{strings.Repeat("a", maxArgBytes+1)} },
		"many":            func(s *Spec) { s.Args = make([]string, maxArgs+1) },
		"much": func(s *Spec) {
			for range 5 {
				s.Args = append(s.Args, strings.Repeat("a", maxArgBytes))
			}
		},
	}
	for name, change := range bad {
		t.Run(name, func(t *testing.T) {
			s := ok
			change(&s)
			require.ErrorIs(t, s.Validate(), errs.ErrInvalid)
		})
	}
}
