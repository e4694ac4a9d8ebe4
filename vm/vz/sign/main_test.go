package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/needs"
	"github.com/arcboxlabs/arcbox-go/vm/vz"
)

// signArg makes the test binary the command itself.
const signArg = "sign-test-main"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == signArg {
		os.Args = os.Args[1:]
		main()
		return
	}
	os.Exit(m.Run())
}

// script makes a shell script.
func script(t *testing.T, name, body string) string {
	t.Helper()
	needs.Unix(t, "there is no shell")
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return path
}

func TestSignsAndRuns(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	codesign := script(t, "codesign", `echo "$@" > `+seen+`; cat "$5" >> `+seen)
	program := script(t, "program", `echo "ran with $2"; exit 7`)
	self, err := os.Executable()
	require.NoError(t, err)
	out, err := exec.Command(self, signArg, "-codesign", codesign, "-run", program, "-test.v", "an argument").Output()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode(), "the exit code is the program's")
	require.Equal(t, "ran with an argument\n", string(out))
	b, err := os.ReadFile(seen)
	require.NoError(t, err)
	require.Contains(t, string(b), "--force --sign - --entitlements ")
	require.Contains(t, string(b), " "+program+"\n")
	require.Contains(t, string(b), vz.Entitlements)
}

func TestWhatFails(t *testing.T) {
	fails := script(t, "codesign", "echo no identity found >&2; exit 1")
	program := script(t, "program", "echo must not run")
	for name, c := range map[string]struct {
		args []string
		code int
		text string
	}{
		"nothing":        {nil, 2, "usage"},
		"two programs":   {[]string{"a", "b"}, 2, "usage"},
		"bad flag":       {[]string{"-x"}, 2, "flag provided"},
		"no program":     {[]string{filepath.Join(t.TempDir(), "none")}, 1, "none"},
		"codesign fails": {[]string{"-codesign", fails, "-run", program}, 1, "no identity found"},
		"no codesign":    {[]string{"-codesign", "/no/such/codesign", program}, 1, "/no/such/codesign"},
	} {
		t.Run(name, func(t *testing.T) {
			code, err := run(c.args)
			require.Equal(t, c.code, code)
			require.ErrorContains(t, err, c.text)
		})
	}
}

func TestArgumentsOfCodesign(t *testing.T) {
	o, err := parse([]string{"-identity", "Developer ID", "-hardened", "app"})
	require.NoError(t, err)
	require.Equal(t, []string{"--force", "--sign", "Developer ID", "--entitlements", "e", "--options", "runtime", "--timestamp", "app"}, o.arguments("e"))
}
