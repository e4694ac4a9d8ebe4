//go:build unix

package keychain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// docker makes a configuration of docker, and helpers by their names.
func docker(t *testing.T, config string, helpers map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
	for name, script := range helpers {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("DOCKER_AUTH_CONFIG", "")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func repository(t *testing.T, s string) authn.Resource {
	t.Helper()
	r, err := name.NewRepository(s)
	require.NoError(t, err)
	return r
}

func TestWhereCredentialsAre(t *testing.T) {
	const me = `{"auths":{"x.io":{"auth":"bWU6c2VjcmV0"}}` // me:secret
	says := map[string]string{
		"yes":   `read key; echo "{\"Username\":\"$key\",\"Secret\":\"s\"}"`,
		"no":    `echo "credentials not found in native keychain"; exit 1`,
		"token": `echo '{"Username":"<token>","Secret":"tok"}'`,
	}
	for what, c := range map[string]struct {
		config, env, repo string
		want              authn.AuthConfig
	}{
		"file":                    {config: me + `}`, want: authn.AuthConfig{Username: "me", Password: "secret"}},
		"nothing":                 {config: `{}`},
		"helper":                  {config: `{"credHelpers":{"x.io":"yes"}}`, want: authn.AuthConfig{Username: "x.io", Password: "s"}},
		"token":                   {config: `{"credHelpers":{"x.io":"token"}}`, want: authn.AuthConfig{IdentityToken: "tok"}},
		"store":                   {config: `{"credsStore":"yes"}`, want: authn.AuthConfig{Username: "x.io/a", Password: "s"}},
		"store that has none":     {config: `{"credsStore":"no"}`},
		"store before file":       {config: me + `,"credsStore":"no"}`},
		"helper of another":       {config: me + `,"credHelpers":{"y.io":"gone"}}`, want: authn.AuthConfig{Username: "me", Password: "secret"}},
		"helper before store":     {config: `{"credsStore":"gone","credHelpers":{"x.io":"yes","x.io/a":"no"}}`, want: authn.AuthConfig{Username: "x.io", Password: "s"}},
		"environment before them": {config: `{"credsStore":"gone"}`, env: me + `}`, repo: "x.io", want: authn.AuthConfig{Username: "me", Password: "secret"}},
		"the hub":                 {config: `{"credHelpers":{"https://index.docker.io/v1/":"yes"}}`, repo: "a/b", want: authn.AuthConfig{Username: "https://index.docker.io/v1/", Password: "s"}},
	} {
		t.Run(what, func(t *testing.T) {
			docker(t, c.config, says)
			t.Setenv("DOCKER_AUTH_CONFIG", c.env)
			target := repository(t, "x.io/a")
			switch {
			case c.repo == "x.io":
				target = target.(name.Repository).Registry
			case c.repo != "":
				target = repository(t, c.repo)
			}
			auth, err := authn.Resolve(t.Context(), Docker{}, target)
			require.NoError(t, err)
			got, err := authn.Authorization(t.Context(), auth)
			require.NoError(t, err)
			got.Auth = ""
			require.Equal(t, c.want, *got)
		})
	}
}

func TestWhatCannotBeAsked(t *testing.T) {
	for what, c := range map[string]struct{ config, says string }{
		"no helper":      {`{"credsStore":"gone"}`, "docker-credential-gone"},
		"helper fails":   {`{"credsStore":"fails"}`, "locked"},
		"helper mumbles": {`{"credsStore":"mumbles"}`, "docker-credential-mumbles"},
		"broken file":    {`{"auths":`, "docker's configuration"},
	} {
		t.Run(what, func(t *testing.T) {
			docker(t, c.config, map[string]string{"fails": "echo locked >&2; exit 1", "mumbles": "echo {"})
			_, err := Docker{}.Resolve(repository(t, "x.io/a"))
			require.ErrorIs(t, err, errs.ErrUnavailable)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// TestHelperEndsWithTheContext has one that waits for ever, as for a password that nobody types.
func TestHelperEndsWithTheContext(t *testing.T) {
	dir := docker(t, `{"credsStore":"waits"}`, map[string]string{"waits": `echo > "$FIFO"; exec sleep 1000`})
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	t.Setenv("FIFO", fifo)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	go func() {
		_, _ = os.ReadFile(fifo) // returns when the helper runs
		cancel(stop)
	}()
	_, err := authn.Resolve(ctx, Docker{}, repository(t, "x.io/a"))
	require.ErrorIs(t, err, stop)
}
