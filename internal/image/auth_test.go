package image

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/require"
)

// staticKeychain has one secret for every registry.
type staticKeychain authn.AuthConfig

func (k staticKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig(k)), nil
}

func TestPullWithCredentials(t *testing.T) {
	basic := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	bearer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != "secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_ = json.NewEncoder(w).Encode(map[string]string{"token": "for " + r.URL.Query().Get("scope")})
				return
			}
			if r.Header.Get("Authorization") != "Bearer for repository:app:pull" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	for name, wrap := range map[string]func(http.Handler) http.Handler{"basic": basic, "bearer": bearer} {
		t.Run(name, func(t *testing.T) {
			srv := imagetest.NewRegistry(t)
			ref := srv.Push(t, "app", "1", threeLayers(t))
			srv.Wrap(wrap)
			s := openStore(t, func(c *Config) { c.Keychain = staticKeychain{Username: "me", Password: "secret"} })
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			require.NoError(t, err)
			for _, bad := range []authn.Keychain{staticKeychain{Username: "me", Password: "guess-of-mine"}, authn.NewMultiKeychain()} {
				s := openStore(t, func(c *Config) { c.Keychain = bad })
				_, err := s.Pull(t.Context(), ref, PullOptions{})
				require.ErrorIs(t, err, errs.ErrUnavailable)
				require.NotContains(t, err.Error(), "guess-of-mine")
			}
		})
	}
}

// TestCredentialsStayWithTheRegistry redirects a blob to another host, which must not see the secret.
func TestCredentialsStayWithTheRegistry(t *testing.T) {
	srv, elsewhere := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	img := threeLayers(t)
	ref := srv.Push(t, "app", "1", img)
	elsewhere.PushBlobs(t, "app", img)
	elsewhere.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				t.Error("the secret went elsewhere")
			}
			next.ServeHTTP(w, r)
		})
	})
	srv.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Redirect(w, r, "http://"+elsewhere.Host+r.URL.Path, http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	s := openStore(t, func(c *Config) { c.Keychain = staticKeychain{Username: "me", Password: "secret"} })
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	require.NoError(t, err)
	requireTidy(t, s)
}
