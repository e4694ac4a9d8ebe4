package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Version is a version of QEMU.
type Version struct{ Major, Minor, Micro int }

// MinVersion is the oldest QEMU that the driver works with.
var MinVersion = Version{7, 2, 0}

// String returns for example "7.2.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Less tells whether v is older than w.
func (v Version) Less(w Version) bool {
	if v.Major != w.Major {
		return v.Major < w.Major
	}
	if v.Minor != w.Minor {
		return v.Minor < w.Minor
	}
	return v.Micro < w.Micro
}

func (v Version) check() error {
	if v.Less(MinVersion) {
		return fmt.Errorf("QEMU %s: %w: version %s or later is needed", v, errs.ErrUnsupported, MinVersion)
	}
	return nil
}

var versionLine = regexp.MustCompile(`(?m)^QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?\b`)

// parseVersion reads the output of qemu-system-* --version.
func parseVersion(out []byte) (Version, error) {
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return Version{}, fmt.Errorf("%w: %.80q is not the version of a QEMU", errs.ErrUnavailable, bytes.TrimSpace(out))
	}
	n := func(b []byte) int {
		i, _ := strconv.Atoi(string(b)) // digits only; a missing micro version is 0
		return i
	}
	return Version{n(m[1]), n(m[2]), n(m[3])}, nil
}

// emulator returns the name of the program that runs guests of the architecture.
func emulator(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "qemu-system-x86_64", nil
	case "arm64":
		return "qemu-system-aarch64", nil
	}
	return "", fmt.Errorf("guest architecture %.40q: %w: use amd64 or arm64", arch, errs.ErrUnsupported)
}

// installHint says how to get the program on an operating system.
func installHint(goos, arch string) string {
	pkg := map[string]string{"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}[arch]
	if goos == "darwin" {
		return "install it with: brew install qemu"
	}
	return "install it, on Debian and Ubuntu with: apt-get install " + pkg
}

// find returns the path of the program for guests of the architecture: explicit, or from PATH where that is "".
func find(explicit, goos, arch string) (string, error) {
	name, err := emulator(arch)
	if err != nil {
		return "", err
	}
	if explicit != "" {
		name = explicit
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find QEMU: %w: %w; %s", errs.ErrUnavailable, err, installHint(goos, arch))
	}
	return path, nil
}

// askVersion runs the program to learn its version.
func askVersion(ctx context.Context, path string) (Version, error) {
	tail := &tailBuffer{limit: 4 << 10}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = tail, tail
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Version{}, fmt.Errorf("ask %s for its version: %w", path, context.Cause(ctx))
		}
		return Version{}, fmt.Errorf("ask %s for its version: %w: %w: %s", path, errs.ErrUnavailable, err, tail)
	}
	v, err := parseVersion(tail.bytes())
	if err != nil {
		return Version{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	return v, nil
}

// environment is what QEMU gets of this process's environment: what the loader of its libraries needs, and no secrets.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, k := range []string{"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// fileError turns the error of a file that a machine needs into one that says which.
func fileError(what, path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s %s: %w", what, path, errs.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what, err)
}
