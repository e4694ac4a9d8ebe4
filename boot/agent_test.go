package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const emptyProgram = "package main\n\nfunc main() {}\n"

func testResolver(t *testing.T, cfg Config) *resolver {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	r, err := newResolver(cfg)
	require.NoError(t, err)
	return r
}

func TestAgentIsBuiltOncePerSource(t *testing.T) {
	needGo(t)
	src := agentSource{dir: standIn(t, emptyProgram)}
	var builds int
	r := testResolver(t, Config{Arch: "amd64", Progress: func(p Progress) { builds += int(p.Done) }})
	a, err := r.buildAgent(t.Context(), src)
	require.NoError(t, err)
	require.NoError(t, checkAgent(a.path(agentName), "amd64"))
	b, err := r.buildAgent(t.Context(), src)
	require.NoError(t, err)
	require.Equal(t, a.dir, b.dir)
	require.Equal(t, 1, builds)
}

func TestKeyOfASourceFollowsWhatTheAgentIsMadeOf(t *testing.T) {
	dir := standIn(t, emptyProgram)
	key := func() string {
		k, err := agentSource{dir: dir}.key("amd64")
		require.NoError(t, err)
		return k
	}
	first := key()
	write := func(name, body string) {
		p := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte(body), 0o600))
	}
	for _, name := range []string{"internal/x/x_test.go", "internal/x/testdata/a", "vm/vm.go", "README.md", "internal/.hidden/a.go"} {
		write(name, "changed")
		require.Equal(t, first, key(), name)
	}
	seen := map[string]bool{first: true}
	for _, name := range []string{"go.mod", "go.sum", "internal/x/x.go", "internal/new/y.go", "internal/x/embedded.json", "agent/cmd/arcbox-agent/main.go"} {
		write(name, "changed "+name)
		require.False(t, seen[key()], name)
		seen[key()] = true
	}
	other, err := agentSource{dir: dir}.key("arm64")
	require.NoError(t, err)
	require.False(t, seen[other])
}

func TestSourceThatDoesNotBuildIsAnErrorWithTheCompilersWords(t *testing.T) {
	needGo(t)
	r := testResolver(t, Config{Arch: "amd64"})
	_, err := r.buildAgent(t.Context(), agentSource{dir: standIn(t, "package main\n\nfunc main() { undefinedThing() }\n")})
	require.ErrorContains(t, err, "undefined: undefinedThing")
	require.Empty(t, leftovers(t, r.store.dir))
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	needGo(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user left")
	r := testResolver(t, Config{Arch: "amd64", Progress: func(Progress) { cancel(why) }})
	_, err := r.buildAgent(ctx, agentSource{dir: standIn(t, emptyProgram)})
	require.ErrorIs(t, err, why)
	require.Empty(t, leftovers(t, r.store.dir))
}

func TestWithoutToolchainTheErrorSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := goTool(filepath.Join(t.TempDir(), "go"))
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "install Go")
	require.ErrorContains(t, err, "name the file in Agent")
}

func TestOwnSourceIsFound(t *testing.T) {
	src, err := findAgentSource(t.Context())
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(src.dir, "boot", "agent.go"))
}

func TestModuleOfTheProgram(t *testing.T) {
	dep := &debug.Module{Path: modulePath, Version: "v1.2.3", Sum: "h1:x"}
	info := &debug.BuildInfo{Main: debug.Module{Path: "example.com/app"}, Deps: []*debug.Module{{Path: "example.com/y"}, dep}}
	require.Equal(t, dep, findModule(info))
	fork := &debug.Module{Path: "example.com/fork", Version: "v1.2.4", Sum: "h1:y"}
	dep.Replace = fork
	require.Equal(t, fork, findModule(info), "a replacement is what was compiled")
	require.Nil(t, findModule(&debug.BuildInfo{Main: debug.Module{Path: "example.com/app"}}))
}

func TestBadAgentsAreRefused(t *testing.T) {
	dynamic := fixture.Vmlinux(fixture.AMD64, false, 0)
	dynamic[64] = 3 // PT_INTERP
	for name, c := range map[string]struct {
		body []byte
		text string
	}{
		"a script":           {[]byte("#!/bin/sh\n"), "no ELF file"},
		"other architecture": {fixture.Vmlinux(fixture.ARM64, false, 0), "not for amd64"},
		"dynamic":            {dynamic, "CGO_ENABLED=0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "agent")
			require.NoError(t, os.WriteFile(p, c.body, 0o600))
			r := testResolver(t, Config{Arch: "amd64", Agent: p})
			_, err := r.agent(t.Context())
			require.ErrorIs(t, err, errs.ErrInvalid)
			require.ErrorContains(t, err, c.text)
			require.Empty(t, leftovers(t, r.store.dir))
		})
	}
}

func TestReleasedVersionNeedsTheNetwork(t *testing.T) {
	needGo(t)
	r := testResolver(t, Config{Arch: "amd64", Offline: true})
	src := agentSource{path: modulePath, version: "v1.2.3", sum: "h1:x"}
	_, err := r.buildAgent(t.Context(), src)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	k, err := src.key("amd64")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(k, "amd64-"))
}
