package container

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// Others knows the machines whose containers have records beside ours and that are not ours.
type Others interface {
	// Taken tells whether a program has the machine.
	Taken(machine string) bool
	// Take makes the machine ours, and its containers known, by LoadMachine. Where another program has it, the error is
	// ErrInUse and names the process.
	Take(ctx context.Context, machine string) error
}

// foreigners returns the containers of machines that are not ours, as their records say; what ran in one that nobody has
// any more has ended. Records that are not understood are their owner's business.
func (m *Manager) foreigners() []Info {
	if m.records == nil || m.cfg.Others == nil {
		return nil
	}
	files, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return nil
	}
	var out []Info
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || !idPattern.MatchString(id) || m.isKnown(id) {
			continue
		}
		i, err := loadRecord(m.records.file(id), id) // one that was removed meanwhile is an error too
		if err != nil || m.cfg.keeps(i.Machine) {
			continue
		}
		if i.State.live() && !m.cfg.Others.Taken(i.Machine) {
			i.end(time.Now())
		}
		out = append(out, i)
	}
	return out
}

func (m *Manager) isKnown(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[id] != nil
}

// end is what a record says whose program ended before it was told how the container did.
func (i *Info) end(at time.Time) {
	i.State, i.Exit, i.Finished, i.Reason = StateExited, api.Exit{Code: unknownExitCode}, at, "the program that ran it ended"
}

// foreign returns the container of another program with the id, the name, or the unique prefix of an id.
func (m *Manager) foreign(ref string) (Info, bool) {
	all := m.foreigners()
	for _, same := range []func(Info) bool{
		func(i Info) bool { return i.ID == ref },
		func(i Info) bool { return i.Name == ref },
		func(i Info) bool { return ref != "" && strings.HasPrefix(i.ID, ref) },
	} {
		at := slices.IndexFunc(all, same)
		if at >= 0 && !slices.ContainsFunc(all[at+1:], same) {
			return all[at], true
		}
	}
	return Info{}, false
}

// takeFor takes the machine of a container of another program, and tells whether it has. Why it could not be replaces the
// error; that of a container that there is not stays.
func (m *Manager) takeFor(ctx context.Context, ref string, err *error) bool {
	i, ok := m.foreign(ref)
	if !ok {
		return false
	}
	if terr := m.cfg.Others.Take(ctx, i.Machine); terr != nil {
		*err = terr
		return false
	}
	return true
}
