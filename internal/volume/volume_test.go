package volume

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func open(t testing.TB, dir string) *Manager {
	m, err := Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return m
}

func TestRecordsAreThereAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	m := open(t, dir)
	a, err := m.Create("a", map[string]string{"k": "v"})
	require.NoError(t, err)
	anon, err := m.Create("", nil)
	require.NoError(t, err)
	require.Equal(t, anon.ID, anon.Name)
	_, err = m.Create("gone", nil)
	require.NoError(t, err)
	_, err = m.Remove("gone")
	require.NoError(t, err)

	m = open(t, dir)
	got, err := m.Get("a")
	require.NoError(t, err)
	require.True(t, a.Created.Equal(got.Created))
	got.Created = a.Created
	require.Equal(t, a, got)
	require.Len(t, m.List(Filter{}), 2)
	require.Equal(t, slices.Sorted(slices.Values([]string{a.ID, anon.ID})), m.IDs())
	m.Restore("c1", "web", []string{"a", "gone"})
	_, err = m.Remove("a")
	require.ErrorIs(t, err, errs.ErrInUse)
	m.Rename("c1", "www")
	_, err = m.Remove("a")
	require.ErrorContains(t, err, "www")
	require.Empty(t, m.Release("c1", true), "it has a name")
	_, err = m.Remove("a")
	require.NoError(t, err)
}

func TestDamagedRecordIsSeen(t *testing.T) {
	dir := t.TempDir()
	id := strings.Repeat("a", 64)
	require.NoError(t, os.WriteFile(filepath.Join(dir, id+".json"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	m := open(t, dir)
	list := m.List(Filter{})
	require.Len(t, list, 1)
	require.Equal(t, id, list[0].Name)
	require.Equal(t, []string{id}, m.IDs(), "its data is not swept")
	_, err := m.Remove(id)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(dir, id+".json"))
}

func TestUseMakesAllOrNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	m := open(t, dir)
	_, err := m.Use("c", "c", []Want{{Name: "good"}, {Name: "../bad"}})
	require.ErrorIs(t, err, errs.ErrInvalid)
	require.Empty(t, m.List(Filter{}))
	require.NoError(t, os.RemoveAll(dir)) // nothing can be written
	_, err = m.Use("c", "c", []Want{{Name: "good"}, {}})
	require.Error(t, err)
	require.Empty(t, m.List(Filter{}))
	require.NoError(t, os.Mkdir(dir, 0o700))
	got, err := m.Use("c", "c", []Want{{Name: "good"}, {}, {Name: "good"}})
	require.NoError(t, err)
	require.Equal(t, got[0], got[2])
	require.True(t, got[1].Anonymous)
	require.Equal(t, []string{"c"}, got[0].UsedBy)
	require.Len(t, m.Release("c", true), 1)
	require.Len(t, m.List(Filter{Unused: true}), 1)
	require.Empty(t, m.List(Filter{Anonymous: true}))
}

// TestAgainstModel makes random calls and compares with a model, and with what is on disk.
func TestAgainstModel(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	rnd := rand.New(rand.NewPCG(1, 2))
	volumes := map[string]map[string]bool{} // users by name
	for range 300 {
		name, user := fmt.Sprint("v", rnd.IntN(6)), fmt.Sprint("c", rnd.IntN(4))
		users, known := volumes[name]
		switch rnd.IntN(5) {
		case 0:
			_, err := m.Create(name, nil)
			require.Equal(t, known, err != nil)
			if !known {
				volumes[name] = map[string]bool{}
			}
		case 1:
			_, err := m.Remove(name)
			require.Equal(t, !known || len(users) > 0, err != nil)
			if err == nil {
				delete(volumes, name)
			}
		case 2:
			for _, users := range volumes { // a container uses volumes once
				delete(users, user)
			}
			m.Release(user, false)
			_, err := m.Use(user, user, []Want{{Name: name}})
			require.NoError(t, err)
			if !known {
				volumes[name] = map[string]bool{}
			}
			volumes[name][user] = true
		case 3:
			m.Release(user, true)
			for _, users := range volumes {
				delete(users, user)
			}
		case 4:
			m = open(t, dir)
			byUser := map[string][]string{}
			for name, users := range volumes {
				for u := range users {
					byUser[u] = append(byUser[u], name)
				}
			}
			for u, names := range byUser {
				m.Restore(u, u, names)
			}
		}
		list := m.List(Filter{})
		require.Len(t, list, len(volumes))
		for _, i := range list {
			require.Equal(t, slices.Sorted(maps.Keys(volumes[i.Name])), i.UsedBy)
		}
	}
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, len(volumes))
}

func TestHammer(t *testing.T) {
	m := open(t, "")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			id := fmt.Sprint("c", g)
			for range 200 {
				if _, err := m.Use(id, id, []Want{{Name: "shared"}, {}}); err != nil {
					t.Error(err)
				}
				_, _ = m.Remove("shared")
				if _, err := m.Get("shared"); err != nil {
					t.Error("removed while it is used:", err)
				}
				if n := len(m.Release(id, true)); n != 1 {
					t.Error("anonymous volumes removed:", n)
				}
				_, _ = m.Remove("shared")
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, len(m.List(Filter{})), 1)
}

func FuzzDecode(f *testing.F) {
	id := strings.Repeat("0", 64)
	f.Add([]byte(`{"version":1,"volume":{"id":"` + id + `","name":"a","labels":{"k":"v"}}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decode(b, id)
		if err == nil {
			require.NoError(t, CheckName(i.Name))
			require.Equal(t, id, i.ID)
		}
	})
}

// TestAdopt takes up volumes of a saved machine beside others.
func TestAdopt(t *testing.T) {
	m, err := Open(Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	known, err := m.Create("data", nil)
	require.NoError(t, err)
	a, b, c := newID(), newID(), newID()
	names, err := m.Adopt([]Info{
		{ID: known.ID, Name: "data"}, {ID: a, Name: "data", Labels: map[string]string{"k": "v"}}, {ID: b, Name: "data"}, {ID: c, Name: "cache"},
	}, "-child")
	require.NoError(t, err)
	require.Equal(t, map[string]string{known.ID: "data", a: "data-child", b: b, c: "cache"}, names)
	i, err := m.Get("data-child")
	require.NoError(t, err)
	require.Equal(t, a, i.ID)
	require.Equal(t, "v", i.Labels["k"])
	again, err := m.Adopt([]Info{{ID: a, Name: "data"}}, "-child")
	require.NoError(t, err)
	require.Equal(t, "data-child", again[a])
	for _, bad := range []Info{{ID: "../x", Name: "x"}, {ID: newID(), Name: "../x"}} {
		_, err := m.Adopt([]Info{bad}, "-child")
		require.ErrorIs(t, err, errs.ErrCorrupt)
	}
}
