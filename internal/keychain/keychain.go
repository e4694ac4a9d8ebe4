// Package keychain finds credentials for registries where the docker command keeps them.
package keychain

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Docker is the keychain of docker's configuration file, whose credential helpers are ended with the context, and where
// it names none that of authn.DefaultKeychain, which knows podman's files too. The zero value works, and is safe for use
// by many goroutines.
type Docker struct{}

var _ authn.ContextKeychain = Docker{}

// Resolve is ResolveContext without a context.
func (d Docker) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return d.ResolveContext(context.Background(), target)
}

// ResolveContext returns the credentials of a repository or registry, or authn.Anonymous where there are none. A file that
// cannot be read and a helper that cannot be asked are ErrUnavailable.
func (d Docker) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	cf, err := config.Load(os.Getenv(config.EnvOverrideConfigDir))
	if err != nil {
		return nil, fmt.Errorf("read docker's configuration, mend it or remove it: %w (%w)", err, errs.ErrUnavailable)
	}
	if cf.CredentialsStore == "" && len(cf.CredentialHelpers) == 0 {
		auth, err := authn.Resolve(ctx, authn.DefaultKeychain, target)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", err, errs.ErrUnavailable)
		}
		return auth, nil
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		got, err := find(ctx, cf, key)
		if err != nil {
			return nil, err
		}
		got.ServerAddress = ""
		if got != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: got.Username, Password: got.Password, Auth: got.Auth, IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// find looks for one key: in DOCKER_AUTH_CONFIG, which the library reads, then in what is configured for it.
func find(ctx context.Context, cf *configfile.ConfigFile, key string) (types.AuthConfig, error) {
	helper, ok := cf.CredentialHelpers[key]
	if !ok {
		helper = cf.CredentialsStore
	}
	files := configfile.ConfigFile{}
	if helper == "" {
		files.AuthConfigs = cf.AuthConfigs
	}
	got, err := files.GetAuthConfig(key)
	if err != nil {
		return got, fmt.Errorf("read docker's credentials: %w (%w)", err, errs.ErrUnavailable)
	}
	if helper == "" || got.Username != "" || got.IdentityToken != "" || got.RegistryToken != "" {
		return got, nil
	}
	return ask(ctx, helper, key)
}

// The user name that a helper tells a token by.
const tokenUser = "<token>"

// What a helper whose children keep its output open gets after its end.
const waitDelay = time.Second

// ask runs a credential helper.
func ask(ctx context.Context, helper, key string) (types.AuthConfig, error) {
	var said bytes.Buffer
	got, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, "docker-credential-"+helper, args...)
		cmd.WaitDelay = waitDelay
		cmd.Stderr = &said
		return program{cmd}
	}, key)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return types.AuthConfig{}, nil
	case err != nil && ctx.Err() != nil:
		return types.AuthConfig{}, context.Cause(ctx)
	case err != nil:
		return types.AuthConfig{}, fmt.Errorf("ask docker-credential-%s, which docker's configuration names: %w %.500q (%w)",
			helper, err, said.Bytes(), errs.ErrUnavailable)
	case got.Username == tokenUser:
		return types.AuthConfig{IdentityToken: got.Secret}, nil
	}
	return types.AuthConfig{Username: got.Username, Password: got.Secret}, nil
}

// program is a helper that the client runs.
type program struct{ *exec.Cmd }

// Input says what the helper reads.
func (p program) Input(r io.Reader) { p.Stdin = r }
