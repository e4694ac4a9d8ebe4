package imagetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// Programs returns an image with real programs from Debian packages, and a static busybox for the shell: redis-server and
// redis-cli, nginx, and python3 without its larger modules. It is named "programs:test" and runs sh; users are root,
// redis, www-data and user.
//
// The packages are fetched with the system's apt, without root, when a machine needs them for the first time: some 10 MB.
// They are unpacked into an archive only, which is kept in the user's cache directory and checked whenever it is used.
// Processes that come at the same time wait for one of them.
func Programs(tb testing.TB) (Image, error) {
	return debian(tb, "programs:test", "nginx", "python3-minimal", "redis-server", "redis-tools")
}

// Postgres returns an image like that of Programs with PostgreSQL, its programs in /usr/lib/postgresql/*/bin, and curl. It is
// named "postgres:test"; its user is postgres. It has no compiler of queries, which is as large as all the rest.
func Postgres(tb testing.TB) (Image, error) {
	return debian(tb, "postgres:test", "postgresql", "curl")
}

// debian returns an image with a busybox and packages.
func debian(tb testing.TB, name string, packages ...string) (Image, error) {
	tb.Helper()
	img, err := Busybox(tb)
	if err != nil {
		return Image{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Image{}, err
	}
	r := root{dir: filepath.Join(cache, "arcbox-test", "roots"), packages: packages}
	data, err := r.get(tb.Context())
	if err != nil {
		return Image{}, fmt.Errorf("make a root from Debian packages: %w", err)
	}
	img.Names = []string{name}
	img.Config.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	img.Layers = []Layer{programBase(tb, img.Layers[0]), Plain(data)}
	return img, nil
}

// programBase turns the layer of the busybox image into one with merged directories, as Debian has them.
func programBase(tb testing.TB, busybox Layer) Layer {
	dir := func(uid int, mode int64) File { return File{Type: tar.TypeDir, Mode: mode, Uid: uid, Gid: uid} }
	link := func(to string) File { return File{Type: tar.TypeSymlink, Mode: 0o777, Link: to} }
	users := "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nredis:x:101:101::/var/lib/redis:/bin/sh\npostgres:x:102:102::/var/lib/postgresql:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	files := map[string]File{
		"bin": link("usr/bin"), "sbin": link("usr/sbin"), "lib": link("usr/lib"), "lib64": link("usr/lib64"),
		"etc/passwd":    {Data: []byte(users)},
		"etc/group":     {Data: []byte("root:x:0:\nwww-data:x:33:\nredis:x:101:\npostgres:x:102:\nuser:x:1000:\n")},
		"run":           dir(0, 0o755),
		"var/lib/redis": dir(101, 0o750), "var/lib/postgresql": dir(102, 0o750), "var/lib/nginx": dir(0, 0o755), "var/log/nginx": dir(0, 0o755),
	}
	for r := tar.NewReader(bytes.NewReader(busybox.Tar)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			tb.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if _, ok := files[name]; ok {
			continue
		}
		files[merged(name)] = File{Type: h.Typeflag, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Data: data, Link: h.Linkname}
	}
	return Files(tb, files)
}

// rootRecipe changes when the archive of the same packages would be another one.
const rootRecipe = "2"

// root is an archive of Debian packages.
type root struct {
	dir      string // of the cache
	packages []string
}

// get returns the archive, which it makes where it is not in the cache, or is not what it was.
func (r root) get(ctx context.Context) ([]byte, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(strings.Join(append([]string{rootRecipe}, r.packages...), "\n")))
	return Cached(ctx, filepath.Join(r.dir, hex.EncodeToString(key[:8])+".tar"), func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		return r.build(ctx)
	})
}

// Cached returns what a file keeps, or what fn makes where it is not there or damaged. Those who come at the same time wait for
// one of them, in other processes too.
func Cached(ctx context.Context, file string, fn func() ([]byte, error)) ([]byte, error) {
	if data, err := readSummed(file); err == nil {
		return data, nil
	}
	unlock, err := fsx.Lock(ctx, file+".lock", true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if data, err := readSummed(file); err == nil { // somebody else made it
		return data, nil
	}
	data, err := fn()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return data, fsx.WriteFile(file, append(sum[:], data...), 0o600)
}

// fetchTimeout bounds the fetching of packages.
const fetchTimeout = 5 * time.Minute

// readSummed reads a file that begins with the SHA-256 of the rest.
func readSummed(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(b) < sha256.Size {
		return nil, io.ErrUnexpectedEOF
	}
	sum := sha256.Sum256(b[sha256.Size:])
	if !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, fmt.Errorf("%s is damaged", file)
	}
	return b[sha256.Size:], nil
}

// build fetches the packages and all libraries that they need and makes one archive of them. It takes the system's package
// lists, or where those are missing or too old, lists of its own.
func (r root) build(ctx context.Context) ([]byte, error) {
	work, err := os.MkdirTemp(r.dir, "work-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	a := apt{dir: work, opts: []string{
		"-q", "-o", "Dir::Cache=" + work, "-o", "Dir::Cache::srcpkgcache=", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
	}}
	first := a.fetch(ctx, r.packages)
	if first != nil {
		if err := a.ownLists(ctx); err != nil {
			return nil, errors.Join(first, err)
		}
		if err := a.fetch(ctx, r.packages); err != nil {
			return nil, errors.Join(first, err)
		}
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return nil, err
	}
	slices.Sort(debs)
	var out bytes.Buffer
	m := merger{w: tar.NewWriter(&out), seen: map[string]bool{}}
	for _, deb := range debs {
		b, err := command(ctx, work, "dpkg-deb", "--fsys-tarfile", deb)
		if err == nil {
			err = m.add(b)
		}
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return out.Bytes(), m.w.Close()
}

// apt is the system's apt client with a directory of its own.
type apt struct {
	dir  string
	opts []string
}

func (a apt) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	return command(ctx, a.dir, program, append(slices.Clone(a.opts), args...)...)
}

// ownLists fetches package lists from the system's sources.
func (a *apt) ownLists(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(a.dir, "lists", "partial"), 0o700); err != nil {
		return err
	}
	status := filepath.Join(a.dir, "status")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return err
	}
	a.opts = append(a.opts, "-o", "Dir::State="+a.dir, "-o", "Dir::State::lists="+filepath.Join(a.dir, "lists"), "-o", "Dir::State::status="+status)
	_, err := a.run(ctx, "apt-get", "update")
	return err
}

// fetch downloads the packages, and the libraries that they need, into the directory.
func (a apt) fetch(ctx context.Context, packages []string) error {
	graph, err := a.run(ctx, "apt-cache", append([]string{
		"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances",
	}, packages...)...)
	if err != nil {
		return err
	}
	_, err = a.run(ctx, "apt-get", append([]string{"download"}, closure(string(graph), packages)...)...)
	return err
}

// closure returns the packages, and those that they need to run: libraries and interpreters, not what their installation
// takes. Of alternatives it takes all. graph is what apt-cache says.
func closure(graph string, packages []string) []string {
	needs := map[string][]string{}
	name := ""
	for line := range strings.Lines(graph) {
		line = strings.TrimRight(line, "\n")
		kind, dep, isDep := strings.Cut(line, "Depends: ")
		switch {
		case isDep && len(kind) < 6 && !strings.HasPrefix(dep, "<"):
			needs[name] = append(needs[name], dep)
		case line != "" && !strings.ContainsAny(line[:1], " <|"):
			name = line
		}
	}
	all := slices.Clone(packages)
	for i := 0; i < len(all); i++ {
		for _, dep := range needs[all[i]] {
			if wanted(dep) && !slices.Contains(all, dep) {
				all = append(all, dep)
			}
		}
	}
	slices.Sort(all)
	return all
}

// wanted tells whether a package is one that another needs to run: a library, an interpreter, or a server of a package that
// stands for its latest version.
func wanted(dep string) bool {
	for _, bad := range []string{"libpam-", "libc-bin", "libllvm", "libjson-perl", "libperl"} {
		if strings.HasPrefix(dep, bad) {
			return false
		}
	}
	for _, good := range []string{"lib", "zlib", "python3"} {
		if strings.HasPrefix(dep, good) {
			return true
		}
	}
	return strings.HasPrefix(dep, "postgresql-") && !strings.HasSuffix(dep, "-common")
}

// merger makes one archive of many, without documentation, and with merged directories.
type merger struct {
	w    *tar.Writer
	seen map[string]bool
}

func (m merger) add(archive []byte) error {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := merged(path.Clean(h.Name))
		if name == "." || m.seen[name] || needless(name) {
			continue
		}
		m.seen[name] = true
		h.Name = name
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(path.Clean(h.Linkname))
		}
		if err := m.w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(m.w, r); err != nil {
			return err
		}
	}
}

// merged returns where a file is when bin, sbin and lib are in usr.
func merged(name string) string {
	top, rest, below := strings.Cut(name, "/")
	if slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, top) {
		if !below {
			return "usr/" + top
		}
		return "usr/" + top + "/" + rest
	}
	return name
}

func needless(name string) bool {
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/lib/systemd", "etc/init.d"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return strings.Contains(name, "/bitcode/") // of the compiler of queries
}

// command runs a program in English and returns what it wrote. Its error has what it complained of.
func command(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	if _, err := exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("%s (this takes Debian or one of its relatives): %w", program, fs.ErrNotExist)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "env", append([]string{"LC_ALL=C", program}, args...)...)
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
