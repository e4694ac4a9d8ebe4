package kmod_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/boot/internal/codec"
	"github.com/arcboxlabs/arcbox-go/boot/internal/fixture"
	"github.com/arcboxlabs/arcbox-go/boot/internal/kmod"
	"github.com/arcboxlabs/arcbox-go/internal/bootfs"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// tree writes files into a directory and opens it.
func tree(t *testing.T, files map[string][]byte) *kmod.Tree {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, body, 0o600))
	}
	tr, err := kmod.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr
}

func module(depends string, more ...string) []byte {
	return fixture.Module(append([]string{"license=GPL", "depends=" + depends}, more...)...)
}

func names(mods []kmod.Module) []string {
	var out []string
	for _, m := range mods {
		out = append(out, string(m.Stage)+" "+m.Name)
	}
	return out
}

func want(stage bootfs.Stage, name string) kmod.Want { return kmod.Want{Name: name, Stage: stage} }

func TestDependenciesComeFirstAndOnce(t *testing.T) {
	tr := tree(t, map[string][]byte{
		"kernel/a.ko":          module("b-one,c"),
		"kernel/x/b-one.ko.xz": fixture.Pack(codec.XZ, module("d")),
		"kernel/x/c.ko.zst":    fixture.Pack(codec.Zstd, module("d", "alias=pci:v1")),
		"kernel/x/d.ko.gz":     fixture.Pack(codec.Gzip, module("")),
		"kernel/e.ko":          module("c,built_in"),
		"kernel/unused.ko":     []byte("not read"),
		"modules.builtin":      []byte("kernel/fs/built-in.ko\n\n"),
		"build/not-a-module.o": nil,
	})
	mods, err := tr.Resolve([]kmod.Want{
		want(bootfs.Early, "a"), want(bootfs.Early, "built-in"), want(bootfs.Late, "e"), want(bootfs.Late, "c"), want(bootfs.Late, "missing"),
	})
	require.NoError(t, err)
	require.Equal(t, []string{"early d", "early b_one", "early c", "early a", "late e"}, names(mods))
	require.Equal(t, []string{"b_one", "c"}, mods[3].Deps)
	require.Equal(t, []string{"c"}, mods[4].Deps, "what is built in needs no module")
	require.Equal(t, []string{"pci:v1"}, mods[2].Aliases)
	require.Equal(t, module(""), mods[0].Content)
}

func TestSoftDependenciesAreTakenWhereTheyExist(t *testing.T) {
	tr := tree(t, map[string][]byte{
		"a.ko": module("", "softdep=pre: b crypto-alias post: c"),
		"b.ko": module("", "softdep=pre: a"),
		"c.ko": module(""),
	})
	mods, err := tr.Resolve([]kmod.Want{want(bootfs.Late, "a")})
	require.NoError(t, err)
	require.Equal(t, []string{"late b", "late a"}, names(mods))
}

func TestModulesDepIsUsedWhereItExists(t *testing.T) {
	tr := tree(t, map[string][]byte{
		"kernel/a.ko":  module("wrong"),
		"kernel/b.ko":  module(""),
		"updates/b.ko": module("", "alias=updated"),
		"modules.dep":  []byte("kernel/a.ko: updates/b.ko\nupdates/b.ko:\nkernel/gone.ko:\n../../etc/passwd.ko:\nrubbish\n"),
	})
	mods, err := tr.Resolve([]kmod.Want{want(bootfs.Early, "a"), want(bootfs.Early, "gone"), want(bootfs.Early, "passwd")})
	require.NoError(t, err)
	require.Equal(t, []string{"early b", "early a"}, names(mods))
	require.Equal(t, "updates/b.ko", mods[0].Path)
}

func TestBadTreesAreErrors(t *testing.T) {
	_, err := kmod.Open(filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, err, errs.ErrNotFound)
	for name, c := range map[string]struct {
		files map[string][]byte
		want  kmod.Want
		err   error
	}{
		"circle":             {map[string][]byte{"a.ko": module("b"), "b.ko": module("a")}, want(bootfs.Late, "a"), errs.ErrInvalid},
		"missing dependency": {map[string][]byte{"a.ko": module("b")}, want(bootfs.Late, "a"), errs.ErrNotFound},
		"not a module":       {map[string][]byte{"a.ko": []byte("text")}, want(bootfs.Late, "a"), errs.ErrCorrupt},
		"broken compression": {map[string][]byte{"a.ko.xz": fixture.Pack(codec.XZ, module(""))[:60]}, want(bootfs.Late, "a"), errs.ErrCorrupt},
		"required":           {map[string][]byte{"modules.builtin": nil}, kmod.Want{Name: "a", Stage: bootfs.Late, Required: true}, errs.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tree(t, c.files).Resolve([]kmod.Want{c.want})
			require.ErrorIs(t, err, c.err)
		})
	}
}

func TestRequiredIsNoErrorWhereNothingTellsWhatIsBuiltIn(t *testing.T) {
	mods, err := tree(t, nil).Resolve([]kmod.Want{{Name: "a", Stage: bootfs.Late, Required: true}})
	require.NoError(t, err)
	require.Empty(t, mods)
}

func TestLinksOutOfTheDirectoryAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "a.ko")
	require.NoError(t, os.WriteFile(outside, module(""), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "a.ko")))
	tr, err := kmod.Open(dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, tr.Close()) }()
	require.Zero(t, tr.Len())
	_, err = tr.Read("a.ko")
	require.Error(t, err)
}

func FuzzParseInfo(f *testing.F) {
	f.Add(module("a,b", "softdep=pre: x post: y", "alias=z", "name=n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = kmod.ParseInfo(data) // neither panic nor hang
	})
}
