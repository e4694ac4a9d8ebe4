package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func TestRecordsSurviveTheProgram(t *testing.T) {
	dir := t.TempDir()
	m, h, _ := newFakeHost(t, dir)
	ctx := t.Context()
	spec := Spec{
		Name: "web", Image: "app", Entrypoint: []string{}, Args: []string{"x"}, Labels: map[string]string{"k": "v"}, StopTimeout: time.Second,
		Restart: RestartPolicy{Name: RestartAlways}, Health: &HealthCheck{Test: []string{"CMD", "t"}}, Ulimits: []Ulimit{{"core", 0, -1}},
		Resources: Resources{CPUs: 0.5},
	}
	ran, err := m.Create(ctx, spec)
	require.NoError(t, err)
	require.NoError(t, m.Start(ctx, "web"))
	done := started(t, m, Spec{Name: "done"})
	h.machine().exit(done.ID, api.Exit{Code: 3, OOMKilled: true})
	_, err = m.Create(ctx, Spec{Name: "fresh", Image: "app"})
	require.NoError(t, err)
	started(t, m, Spec{Name: "brief", AutoRemove: true})
	gone := started(t, m, Spec{Name: "gone"})
	require.NoError(t, m.Remove(ctx, gone.ID, true))
	require.NoError(t, m.Rename(t.Context(), "done", "over"))
	before, err := m.List(Filter{})
	require.NoError(t, err)
	// What a program that dies has written: all but its own end.
	m.records.close()

	m2, h2, _ := newFakeHost(t, dir)
	after, err := m2.List(Filter{})
	require.NoError(t, err)
	require.Len(t, after, 3)
	require.Equal(t, []string{"web", "over", "fresh"}, []string{after[0].Name, after[1].Name, after[2].Name})
	require.Equal(t, StateExited, after[0].State)
	require.Equal(t, "the program that ran it ended", after[0].Reason)
	require.Equal(t, spec, after[0].Spec)
	require.Equal(t, before[0].Check, after[0].Check)
	require.Equal(t, api.Exit{Code: 3, OOMKilled: true}, after[1].Exit)
	require.True(t, before[1].Finished.Equal(after[1].Finished))
	require.Equal(t, StateCreated, after[2].State)
	_, err = m2.Wait(ctx, ran.ID, WaitNotRunning)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	_, err = m2.Create(ctx, Spec{Name: "web", Image: "app"})
	require.ErrorIs(t, err, errs.ErrExists)
	for _, ref := range []string{"web", "over", "fresh"} {
		require.NoError(t, m2.Start(ctx, ref))
		require.Equal(t, StateRunning, state(t, m2, ref).State)
	}
	require.Equal(t, 3, h2.machine().starts)
	require.Equal(t, []string{"x"}, h2.machine().requests[ran.ID].Process.Args, "an empty entrypoint is not the image's")
	require.NoError(t, m2.Remove(ctx, "fresh", true))
	m2.Close()

	m3, _, _ := newFakeHost(t, dir)
	last, err := m3.List(Filter{})
	require.NoError(t, err)
	require.Len(t, last, 2)
	require.Equal(t, "the runtime was closed", last[0].Reason)
}

// TestRecordIsWrittenWhenACallReturns has nobody write in the background: the calls themselves do.
func TestRecordIsWrittenWhenACallReturns(t *testing.T) {
	dir := t.TempDir()
	m, h, _ := newFakeHost(t, dir)
	ctx := t.Context()
	m.records.close()
	m.records.mu.Lock()
	m.records.closed = false
	m.records.mu.Unlock()
	info, err := m.Create(ctx, Spec{Name: "web", Image: "app"})
	require.NoError(t, err)
	require.Equal(t, StateCreated, written(t, dir, info.ID).State)
	require.NoError(t, m.Start(ctx, "web"))
	require.Equal(t, StateRunning, written(t, dir, info.ID).State)
	require.NoError(t, m.Pause(ctx, "web"))
	require.Equal(t, StatePaused, written(t, dir, info.ID).State)
	require.NoError(t, m.Resume(ctx, "web"))
	require.Equal(t, StateRunning, written(t, dir, info.ID).State)
	require.NoError(t, m.Rename(t.Context(), "web", "net"))
	require.Equal(t, "net", written(t, dir, info.ID).Name)
	_, err = m.Update(ctx, "net", Resources{PIDs: 5}, nil)
	require.NoError(t, err)
	require.EqualValues(t, 5, written(t, dir, info.ID).Spec.Resources.PIDs)
	h.machine().exit(info.ID, api.Exit{Code: 3})
	_, err = m.Wait(ctx, "net", WaitNotRunning)
	require.NoError(t, err)
	require.Equal(t, api.Exit{Code: 3}, written(t, dir, info.ID).Exit)
	require.NoError(t, m.Start(ctx, "net"))
	require.NoError(t, m.Stop(ctx, "net", "", nil))
	require.Equal(t, StateExited, written(t, dir, info.ID).State)
	require.NoError(t, m.Remove(ctx, "net", false))
	require.NoFileExists(t, m.records.file(info.ID))
}

func written(t *testing.T, dir, id string) Info {
	t.Helper()
	info, err := loadRecord(filepath.Join(dir, id+".json"), id)
	require.NoError(t, err)
	return info
}

func TestRecordThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "containers")
	m, h, _ := newFakeHost(t, dir)
	ctx := t.Context()
	info := started(t, m, Spec{Name: "web"})
	away := dir + ".away"
	require.NoError(t, os.Rename(dir, away))
	_, err := m.Create(ctx, Spec{Name: "other", Image: "app"})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "write the record")
	_, err = m.Inspect("other")
	require.ErrorIs(t, err, errs.ErrNotFound)
	require.Len(t, h.machine().running, 1, "nor is it in the guest")
	require.ErrorIs(t, m.Rename(t.Context(), "web", "net"), os.ErrNotExist)
	require.NoError(t, m.Stop(ctx, "net", "", nil), "what has happened has happened")
	require.NoError(t, os.Rename(away, dir))
	m.Close()
	got := written(t, dir, info.ID)
	require.Equal(t, StateExited, got.State, "what could not be written is written when it can be")
	require.Equal(t, "net", got.Name)
}

func TestDamagedRecordsHinderNobody(t *testing.T) {
	dir := t.TempDir()
	m, _, _ := newFakeHost(t, dir)
	good := started(t, m, Spec{Name: "good"})
	m.Close()
	b, err := os.ReadFile(filepath.Join(dir, good.ID+".json"))
	require.NoError(t, err)
	bad := map[string]string{
		"empty": "", "cut": string(b[:len(b)/2]), "no object": "[]",
		"other id":      string(b),
		"version":       strings.Replace(string(b), `"version":1`, `"version":2`, 1),
		"state":         strings.Replace(string(b), `"state":"exited"`, `"state":"removing"`, 1),
		"name":          strings.Replace(string(b), `"name":"good"`, `"name":"../x"`, 1),
		"stop signal":   strings.Replace(string(b), `"stop_signal":"TERM"`, `"stop_signal":"X"`, 1),
		"no image":      strings.Replace(string(b), `"image":"app"`, `"image":""`, 2),
		"taken":         strings.Replace(string(b), good.ID, "%ID", 1),
		"broken health": strings.Replace(string(b), `"stop_signal"`, `"check":{"Test":["CMD","x"]},"stop_signal"`, 1),
	}
	ids := map[string]string{}
	for name, text := range bad {
		id := newID()
		id = "ff" + id[2:] // read after the good one
		ids[name] = id
		if name != "other id" {
			text = strings.ReplaceAll(strings.ReplaceAll(text, good.ID, id), "%ID", id)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, strings.Repeat("e", 64)+".json"), 0o700))
	require.NoError(t, os.Rename(filepath.Join(dir, good.ID+".json"), filepath.Join(dir, "00"+good.ID[2:]+".json")))
	fixed := strings.ReplaceAll(string(b), good.ID, "00"+good.ID[2:])
	require.NoError(t, os.WriteFile(filepath.Join(dir, "00"+good.ID[2:]+".json"), []byte(fixed), 0o600))

	m2, _, _ := newFakeHost(t, dir)
	require.NoError(t, m2.Start(t.Context(), "good"))
	infos, err := m2.List(Filter{States: []State{StateDead}})
	require.NoError(t, err)
	require.Len(t, infos, len(bad)+1)
	for name, id := range ids {
		i := state(t, m2, id)
		require.Equal(t, StateDead, i.State, name)
		require.NotEmpty(t, i.Reason)
		require.ErrorIs(t, m2.Start(t.Context(), id), errs.ErrConflict)
		require.ErrorIs(t, m2.Rename(t.Context(), id, "n"), errs.ErrConflict)
		_, err := m2.Update(t.Context(), id, Resources{PIDs: 1}, nil)
		require.ErrorIs(t, err, errs.ErrConflict)
		require.ErrorIs(t, m2.Reach(t.Context(), id, nil), errs.ErrConflict)
		require.NoError(t, m2.Stop(t.Context(), id, "", nil))
		require.NoError(t, m2.Remove(t.Context(), id, false))
	}
	m2.Close()
	for name, id := range ids {
		_, err := os.Stat(filepath.Join(dir, id+".json"))
		require.True(t, errors.Is(err, os.ErrNotExist), name)
	}
}

func TestLastOfManyChangesIsWritten(t *testing.T) {
	dir := t.TempDir()
	m, _, _ := newFakeHost(t, dir)
	info := started(t, m, Spec{})
	for i := range 300 {
		require.NoError(t, m.Rename(t.Context(), info.ID, "n"+string(rune('a'+i%26))))
	}
	m.Close()
	infos, err := loadRecords(dir, Config{}.keeps, m.cfg.Logger)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, "n"+string(rune('a'+299%26)), infos[0].Name)
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// FuzzDecodeRecord holds that a record that is taken can be used: it makes a request and can be written again.
func FuzzDecodeRecord(f *testing.F) {
	id := strings.Repeat("a", 64)
	b, err := json.Marshal(record{recordVersion, Info{
		ID: id, Name: "n", Image: "app", ImageID: "sha256:x", State: StateExited, Args: []string{"a"}, StopSignal: "TERM",
		Check: &HealthCheck{Test: []string{"CMD", "x"}, Interval: 1e9, Timeout: 1e9, StartInterval: 1e9, Retries: 1}, Spec: Spec{Image: "app"},
	}})
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := decodeRecord(b, id)
		if err != nil {
			return
		}
		require.Equal(t, id, info.ID)
		if info.Check != nil {
			require.NotEmpty(t, info.Check.command())
		}
		again, err := json.Marshal(record{recordVersion, info.clone()})
		require.NoError(t, err)
		_, err = decodeRecord(again, id)
		require.NoError(t, err)
	})
}
