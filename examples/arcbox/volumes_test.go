//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

func TestVolumeFlag(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	for text, want := range map[string]arcbox.Mount{
		"/data":             {Type: arcbox.MountVolume, Target: "/data"},
		"name:/data":        {Type: arcbox.MountVolume, Source: "name", Target: "/data"},
		"name:/data:nocopy": {Type: arcbox.MountVolume, Source: "name", Target: "/data", NoCopy: true},
		"/host:/data:ro":    {Type: arcbox.MountBind, Source: "/host", Target: "/data", ReadOnly: true},
		"./sub:/data:rw,z":  {Type: arcbox.MountBind, Source: filepath.Join(here, "sub"), Target: "/data"},
		".:/data":           {Type: arcbox.MountBind, Source: here, Target: "/data"},
	} {
		got, err := volumeFlag(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{":/data", "a:/b:wx", "a:b:c:d"} {
		_, err := volumeFlag(text)
		require.ErrorContains(t, err, text)
	}
}

func TestMountFlag(t *testing.T) {
	var s arcbox.ContainerSpec
	for _, text := range []string{
		"type=volume,src=v,dst=/v,volume-subpath=a/b,volume-nocopy", "type=bind,source=/host,target=/h,readonly=true",
		"type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700", "target=/anon,ro",
	} {
		require.NoError(t, mountFlag(text, &s), text)
	}
	require.Equal(t, arcbox.ContainerSpec{
		Mounts: []arcbox.Mount{
			{Type: arcbox.MountVolume, Source: "v", Target: "/v", SubPath: "a/b", NoCopy: true},
			{Type: arcbox.MountBind, Source: "/host", Target: "/h", ReadOnly: true}, {Type: arcbox.MountVolume, Target: "/anon", ReadOnly: true},
		},
		Tmpfs: []arcbox.Tmpfs{{Path: "/t", Size: 1 << 20, Mode: 0o700}},
	}, s)
	for _, text := range []string{"", "type=bind,target=/x", "what=ever", "readonly=perhaps"} {
		require.ErrorContains(t, mountFlag(text, &s), "--mount", text)
	}
}

func TestVolumeRecords(t *testing.T) {
	h := newHost(t)
	code, stdout, stderr := h.run("", "-q", "volume", "create", "-l", "for=test", "data")
	require.Zero(t, code, stderr)
	require.Equal(t, "data\n", stdout)
	code, _, stderr = h.run("", "-q", "volume", "create", "data")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "already exists")
	code, stdout, _ = h.run("", "-q", "volume", "ls", "--label", "for=test")
	require.Zero(t, code)
	require.Contains(t, stdout, "data ")
	code, stdout, _ = h.run("", "-q", "volume", "inspect", "data")
	require.Zero(t, code)
	require.Contains(t, stdout, `"for": "test"`)
	code, stdout, _ = h.run("", "-q", "volume", "prune")
	require.Zero(t, code)
	require.Empty(t, stdout)
	code, stdout, _ = h.run("", "-q", "volume", "prune", "-a")
	require.Zero(t, code)
	require.Equal(t, "data\n", stdout)
	code, _, stderr = h.run("", "-q", "volume", "rm", "data")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "not found")
	code, _, _ = h.run("", "-q", "volume", "import", "data", filepath.Join(t.TempDir(), "none"))
	require.Equal(t, 1, code)
}
