package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestMetaPackagesFollowTheDistribution(t *testing.T) {
	for _, c := range []struct{ release, first string }{
		{"ID=debian\n", "linux-image-cloud-amd64"},
		{"NAME=x\nID=ubuntu\nID_LIKE=debian\n", "linux-image-virtual"},
		{"ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "linux-image-virtual"},
		{"", "linux-image-cloud-amd64"},
	} {
		got := metaPackages(c.release, "amd64")
		require.Equal(t, c.first, got[0])
		require.Len(t, got, 5)
	}
}

func TestStanzaIsTheFirstParagraph(t *testing.T) {
	s := parseStanza([]byte("\nPackage: a\nVersion: 1:2\nSize: 12\nDescription: x\n Version: no\nSHA256: ff\n\nPackage: b\nSize: 7\n"))
	require.Equal(t, stanza{Package: "a", Version: "1:2", Size: 12, SHA256: "ff"}, s)
	require.Equal(t, stanza{}, parseStanza(nil))
}

func TestFirstDependency(t *testing.T) {
	s := stanza{Depends: "kmod, linux-base (>= 4.5) | linux-image-x, linux-modules-6.8.0-40-generic:amd64 (= 6.8), linux-modules-7"}
	require.Equal(t, "linux-modules-6.8.0-40-generic", firstDependency(s, realModules))
	require.Empty(t, firstDependency(s, realKernel))
	require.Empty(t, firstDependency(stanza{Depends: "linux-modules-6$(reboot)"}, realModules))
}

func TestStatusLinesBecomeProgress(t *testing.T) {
	var got []int64
	s := &aptStatus{size: 200, rep: &reporter{fn: func(p Progress) { got = append(got, p.Done) }}}
	for _, part := range []string{"dlstatus:1:2", "5.0:Retr\npmstatus:x:50:\ndlstatus:1:NaN:\ndlstatus:1:50:x\ndlstatus", strings.Repeat("x", 10_000), "\ndlstatus:1:200:\n"} {
		_, err := s.Write([]byte(part))
		require.NoError(t, err)
	}
	require.Equal(t, []int64{50, 100}, got)
}

// fakeApt puts an apt on the PATH that knows what stanzas say and delivers files. The lists of the system know nothing
// until update was called where fresh is set.
type fakeApt struct {
	dir string
}

func newFakeApt(t *testing.T, fresh bool) *fakeApt {
	t.Helper()
	f := &fakeApt{dir: t.TempDir()}
	script := `#!/bin/sh
dir=` + f.dir + `
echo "$0 $*" >>$dir/calls
want=; verb=; own=
for a; do
	case $a in
	-o|-q|--no-all-versions) ;;
	Dir::State::lists=*) own=${a#*=} ;;
	*::*) ;;
	update|show|download) verb=$a ;;
	*) want=$a ;;
	esac
done
case $verb in
update) touch $own/updated; echo "E: some source failed" >&2; exit 100 ;;
show)
	if [ -e $dir/fresh ] && ! [ -e "$own/updated" ]; then echo "E: No packages found" >&2; exit 100; fi
	cat $dir/$want.stanza 2>/dev/null || { echo "E: No packages found" >&2; exit 100; } ;;
download) echo "dlstatus:1:50.0:Retrieving" >&3; cp $dir/${want%%=*}.deb ${want%%=*}_1_amd64.deb ;;
esac
`
	if fresh {
		require.NoError(t, os.WriteFile(filepath.Join(f.dir, "fresh"), nil, 0o600))
	}
	for _, name := range []string{"apt-get", "apt-cache"} {
		require.NoError(t, os.WriteFile(filepath.Join(f.dir, name), []byte(script), 0o700))
	}
	t.Setenv("PATH", f.dir+":"+os.Getenv("PATH"))
	return f
}

func (f *fakeApt) add(t *testing.T, name, depends string, deb []byte) {
	t.Helper()
	text := fmt.Sprintf("Package: %s\nVersion: 1.2-3\nArchitecture: amd64\nDepends: %s\nSize: %d\nSHA256: %s\n", name, depends, len(deb), sumOf(deb))
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, name+".stanza"), []byte(text), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, name+".deb"), deb, 0o600))
}

func (f *fakeApt) calls(t *testing.T, verb string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "calls"))
	require.NoError(t, err)
	return strings.Count(string(b), " "+verb)
}

// On Ubuntu the modules are in a package of their own. The machine is fresh: its lists are empty.
func TestUbuntuHasTwoPackages(t *testing.T) {
	f := newFakeApt(t, true)
	var kernel, modules []fixture.File
	for _, file := range fixture.KernelFiles(testRelease) {
		if strings.HasPrefix(file.Name, "./boot/vmlinuz") {
			kernel = append(kernel, file)
		} else {
			modules = append(modules, file)
		}
	}
	f.add(t, "linux-image-virtual", "linux-image-6.1.0-1-test, linux-firmware", nil)
	f.add(t, "linux-image-6.1.0-1-test", "kmod, linux-modules-6.1.0-1-test (= 1.2-3)", fixture.Deb(codec.Zstd, kernel))
	f.add(t, "linux-modules-6.1.0-1-test", "", fixture.Deb(codec.Zstd, modules))
	var steps []Step
	cfg := Config{Dir: t.TempDir(), Arch: "amd64", Agent: testAgent(t), Progress: func(p Progress) { steps = append(steps, p.Step) }}
	a, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, testRelease, a.Release)
	require.Equal(t, "package linux-image-6.1.0-1-test 1.2-3", a.Source)
	require.Equal(t, 2, f.calls(t, "download"))
	require.Contains(t, steps, StepDownload)
	require.NoDirExists(t, filepath.Join(cfg.Dir, "apt-amd64"))

	cfg.Offline = true
	b, err := Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.Equal(t, 2, f.calls(t, "download"), "the cache knows")

	require.NoError(t, os.Truncate(a.Kernel, 10))
	c, err := Resolve(t.Context(), cfg)
	require.NoError(t, err, "the packages are cached, so a damaged kernel is unpacked again")
	require.Equal(t, a, c)

	require.NoError(t, os.Truncate(a.Kernel, 10))
	require.NoError(t, os.RemoveAll(filepath.Join(cfg.Dir, kindPackage)))
	require.NoError(t, os.Mkdir(filepath.Join(cfg.Dir, kindPackage), 0o700))
	_, err = Resolve(t.Context(), cfg)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	cfg.Offline = false
	_, err = Resolve(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, 4, f.calls(t, "download"))
}

func TestPackageThatIsNotWhatAptSaysIsRefused(t *testing.T) {
	f := newFakeApt(t, false)
	deb := fixture.Deb(codec.Gzip, fixture.KernelFiles(testRelease))
	f.add(t, "linux-image-cloud-amd64", "linux-image-6.1.0-1-test (= 1)", nil)
	f.add(t, "linux-image-6.1.0-1-test", "", deb)
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, "linux-image-6.1.0-1-test.deb"), deb[1:], 0o600))
	url, _ := server(t, nil)
	_, err := Resolve(t.Context(), Config{Dir: t.TempDir(), Arch: "amd64", Agent: testAgent(t), Mirror: url})
	require.ErrorIs(t, err, errs.ErrCorrupt)
	require.ErrorContains(t, err, "fetch linux-image-6.1.0-1-test")
	require.Equal(t, 1, f.calls(t, "update"), "the system's lists may be the fault")
}

func TestCancelKillsApt(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// exec, so that the process that sleeps is apt itself.
	script := "#!/bin/sh\n: >" + dir + "/started\nexec sleep 1000\n"
	for _, name := range []string{"apt-get", "apt-cache"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	cfg := Config{Dir: t.TempDir(), Arch: "amd64", Agent: testAgent(t), Progress: func(p Progress) {
		if p.Step == StepFind {
			cancel()
		}
	}}
	_, err := Resolve(ctx, cfg)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, leftovers(t, cfg.Dir))
}
