package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// apt gets packages through the system's apt client, with the system's own sources and keys, without root and without
// installing anything. apt checks the signatures; the digest it names is checked again on what was fetched.
type apt struct {
	get, cache string // paths of apt-get and apt-cache
	arch       string
	dir        string // private state below the boot cache; the holder of the source's lock uses it
	rep        *reporter
	opts       []string // that all commands share
	metas      []string // kernel packages by name, best first
	chosen     map[string]stanza
}

// newApt returns ErrUnavailable on systems without apt.
func (r *resolver) newApt() (*apt, error) {
	get, err := exec.LookPath("apt-get")
	if err != nil {
		return nil, fmt.Errorf("%w: there is no apt-get here", errs.ErrUnavailable)
	}
	cache, err := exec.LookPath("apt-cache")
	if err != nil {
		return nil, fmt.Errorf("%w: there is no apt-cache here", errs.ErrUnavailable)
	}
	release, _ := os.ReadFile("/etc/os-release")
	a := &apt{get: get, cache: cache, arch: r.cfg.Arch, dir: filepath.Join(r.store.dir, "apt-"+r.cfg.Arch), rep: r.rep}
	a.metas = metaPackages(string(release), r.cfg.Arch)
	return a, nil
}

// metaPackages returns the names of the packages that depend on the current kernel, small kernels first. Derived
// distributions are treated as what they say they are like.
func metaPackages(osRelease, arch string) []string {
	debian := []string{"linux-image-cloud-" + arch, "linux-image-" + arch}
	ubuntu := []string{"linux-image-virtual", "linux-image-kvm", "linux-image-generic"}
	for line := range strings.Lines(osRelease) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if (key == "ID" || key == "ID_LIKE") && strings.Contains(value, "ubuntu") {
			return append(ubuntu, debian...)
		}
	}
	return append(debian, ubuntu...)
}

// stanza is what apt knows about one package.
type stanza struct {
	Package, Version, SHA256, Architecture string
	Depends                                string
	Size                                   int64
}

// prepare makes the private state. apt's caches go there even when the system's lists are used, because building them
// takes a second and images of containers switch them off.
func (a *apt) prepare() error {
	if err := os.RemoveAll(a.dir); err != nil {
		return fmt.Errorf("prepare apt: %w", err)
	}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o700); err != nil {
			return fmt.Errorf("prepare apt: %w", err)
		}
	}
	a.opts = []string{
		"-q",
		"-o", "Dir::Cache=" + a.dir,
		"-o", "Dir::Cache::pkgcache=pkgcache.bin",
		"-o", "Dir::Cache::srcpkgcache=",
		"-o", "APT::Architecture=" + a.arch,
		"-o", "APT::Architectures::=" + a.arch,
		"-o", "Acquire::Languages=none",
	}
	if os.Geteuid() == 0 {
		// apt would fetch as a user who cannot write below a directory of mode 0700.
		a.opts = append(a.opts, "-o", "APT::Sandbox::User=root")
	}
	return nil
}

// findInSystemLists names the packages of the kernel that the system's package lists know.
func (a *apt) findInSystemLists(ctx context.Context) (packageSet, error) {
	a.rep.report(StepFind, 0, 0)
	defer a.rep.report(StepFind, 1, 1)
	return a.choose(ctx)
}

// findInOwnLists fetches package lists into the private state, from the system's sources: for a machine without lists or
// with old ones, and for a foreign architecture.
func (a *apt) findInOwnLists(ctx context.Context) (packageSet, error) {
	a.rep.report(StepFind, 0, 0)
	defer a.rep.report(StepFind, 1, 1)
	status := filepath.Join(a.dir, "status")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return packageSet{}, fmt.Errorf("prepare apt: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(a.dir, "pkgcache.bin")); err != nil {
		return packageSet{}, fmt.Errorf("prepare apt: %w", err)
	}
	a.opts = append(a.opts,
		"-o", "Dir::State="+a.dir,
		"-o", "Dir::State::lists="+filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status="+status,
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false",
		"-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
	)
	// A source that fails does not matter where another one has the kernel, so the update's own error comes second.
	_, updateErr := a.run(ctx, a.get, "update")
	if ctx.Err() != nil {
		return packageSet{}, updateErr
	}
	set, err := a.choose(ctx)
	if err != nil {
		return packageSet{}, errors.Join(updateErr, err)
	}
	return set, nil
}

var (
	realKernel  = regexp.MustCompile(`^linux-image-(unsigned-)?[0-9]`)
	realModules = regexp.MustCompile(`^linux-modules-[0-9]`)
	nameOK      = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	versionOK   = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~:-]*$`)
)

// choose follows the metapackages to the real ones: on Debian one package with kernel and modules, on Ubuntu two.
func (a *apt) choose(ctx context.Context) (packageSet, error) {
	var last error
	for _, meta := range a.metas {
		s, err := a.show(ctx, meta)
		if err != nil {
			if last = err; ctx.Err() != nil {
				return packageSet{}, err
			}
			continue
		}
		image := firstDependency(s, realKernel)
		if image == "" {
			last = fmt.Errorf("%w: %s depends on no kernel", errs.ErrNotFound, meta)
			continue
		}
		return a.choosePackages(ctx, image)
	}
	return packageSet{}, last
}

func (a *apt) choosePackages(ctx context.Context, image string) (packageSet, error) {
	kernel, err := a.show(ctx, image)
	if err != nil {
		return packageSet{}, err
	}
	all := []stanza{kernel}
	if modules := firstDependency(kernel, realModules); modules != "" {
		s, err := a.show(ctx, modules)
		if err != nil {
			return packageSet{}, err
		}
		all = append(all, s)
	}
	set := packageSet{Source: fmt.Sprintf("package %s %s", kernel.Package, kernel.Version)}
	a.chosen = map[string]stanza{}
	for _, s := range all {
		if !isSHA256(s.SHA256) || s.Size <= 0 {
			return packageSet{}, fmt.Errorf("%w: apt names no size and SHA-256 for %s", errs.ErrUnavailable, s.Package)
		}
		a.chosen[s.SHA256] = s
		set.Packages = append(set.Packages, pkg{SHA256: s.SHA256, Size: s.Size, Name: s.Package})
	}
	return set, nil
}

// firstDependency returns the first package that s depends on and whose name matches.
func firstDependency(s stanza, match *regexp.Regexp) string {
	for _, group := range strings.Split(s.Depends, ",") {
		for _, alternative := range strings.Split(group, "|") {
			name, _, _ := strings.Cut(strings.TrimSpace(alternative), " ")
			name, _, _ = strings.Cut(name, ":")
			if match.MatchString(name) && nameOK.MatchString(name) {
				return name
			}
		}
	}
	return ""
}

// show asks for the version of a package that would be installed.
func (a *apt) show(ctx context.Context, name string) (stanza, error) {
	out, err := a.run(ctx, a.cache, "show", "--no-all-versions", name)
	if err != nil {
		return stanza{}, err
	}
	s := parseStanza(out)
	if s.Package != name || !versionOK.MatchString(s.Version) || (s.Architecture != a.arch && s.Architecture != "all") {
		return stanza{}, fmt.Errorf("%w: apt knows no package %s for %s", errs.ErrNotFound, name, a.arch)
	}
	return s, nil
}

// parseStanza reads the first paragraph of control fields.
func parseStanza(text []byte) stanza {
	var s stanza
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if line == "" && s.Package != "" {
			break
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Package":
			s.Package = value
		case "Version":
			s.Version = value
		case "Architecture":
			s.Architecture = value
		case "Depends":
			s.Depends = value
		case "SHA256":
			s.SHA256 = value
		case "Size":
			s.Size, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	return s
}

// fetch is a fetchFunc for the packages that find has named.
func (a *apt) fetch(ctx context.Context, p pkg, dst string) error {
	s, ok := a.chosen[p.SHA256]
	if !ok {
		return fmt.Errorf("%w package %s", errs.ErrNotFound, p.Name)
	}
	dir := filepath.Join(filepath.Dir(dst), "apt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("prepare apt: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	a.rep.report(StepDownload, 0, s.Size)
	c := a.child(a.get, "download", s.Package+"="+s.Version)
	c.dir = dir
	c.opts = append(c.opts, "-o", "APT::Status-Fd=3")
	c.status = &aptStatus{rep: a.rep, size: s.Size}
	if _, err := c.run(ctx); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%w: apt has downloaded %d files for %s", errs.ErrUnavailable, len(found), s.Package)
	}
	if err := os.Rename(found[0], dst); err != nil {
		return fmt.Errorf("take package: %w", err)
	}
	a.rep.report(StepDownload, s.Size, s.Size)
	return nil
}

func (a *apt) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	return a.child(program, args...).run(ctx)
}

func (a *apt) child(program string, args ...string) child {
	return child{
		path: program,
		opts: append([]string(nil), a.opts...),
		args: args,
		env:  []string{"LC_ALL=C", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive"},
	}
}

// aptStatus turns apt's machine-readable progress into reports: lines like "dlstatus:1:45.2:Retrieving file".
type aptStatus struct {
	rep  *reporter
	size int64
	line []byte
}

func (s *aptStatus) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			if len(s.line) < 4096 {
				s.line = append(s.line, c)
			}
			continue
		}
		f := strings.SplitN(string(s.line), ":", 4)
		s.line = s.line[:0]
		if len(f) < 3 || f[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(f[2], 64); err == nil && percent >= 0 && percent < 100 {
			s.rep.report(StepDownload, int64(percent/100*float64(s.size)), s.size)
		}
	}
	return len(p), nil
}
