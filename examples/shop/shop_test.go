package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
	"github.com/arcboxlabs/arcbox-go/arcboxtest"
	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(arcboxtest.Main(m)) }

// TestShop orders twice.
func TestShop(t *testing.T) {
	img, err := imagetest.Programs(t)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(file, imagetest.OCIArchive(t, img), 0o600))
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	cfg := arcbox.Config{
		DataDir: t.TempDir(), VM: arcbox.VMConfig{CPUs: 2, Memory: 512 << 20}, Boot: arcbox.BootConfig{Dir: filepath.Join(cache, "arcbox-test", "boot")},
	}
	rt, err := arcbox.New(cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, rt.Close()) }()
	_, err = rt.LoadImage(t.Context(), file, arcbox.LoadOptions{})
	require.NoError(t, err)
	address, err := shop{nginx: "programs:test", redis: "programs:test"}.open(t.Context(), rt)
	needs.Machine(t, err)
	for _, want := range []string{"order no. 1\n", "order no. 2\n"} {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Post("http://"+address+"/order", "", nil)
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, want, string(text))
	}
}
