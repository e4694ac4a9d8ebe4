package boot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/fsx"
)

// store keeps entries: directories that are whole or absent, each with a record of what is in it.
//
//	locks/<kind>-<key>   flock: shared to look, exclusive to build
//	<kind>/<key>/        the entry: its files and record.json
//	<kind>/.tmp-<key>-*  an entry being built, or left by a process that died; the next builder of the key removes it
//
// Looking at an entry compares the size and modification time of each file with the record. That finds what happens to
// files by accident (truncation, a full disk, an editor, a copy) and costs one stat each. Reading 60 MB on every start
// would cost more than the start of a clone, and would stop nobody who can write to a directory of mode 0700: he is the
// user. Where size or time differ, the content is hashed and either taken back into the record or thrown away.
type store struct {
	dir string
	log *slog.Logger
}

// The kinds of entries.
const (
	kindPackage   = "packages"
	kindKernel    = "kernels"
	kindAgent     = "agents"
	kindInitramfs = "initramfs"
)

const recordName = "record.json"

type record struct {
	Files []fileRecord    `json:"files"`
	Meta  json.RawMessage `json:"meta,omitempty"`
}

type fileRecord struct {
	Name   string    `json:"name"` // relative to the entry, slashes
	Size   int64     `json:"size"`
	Time   time.Time `json:"time"` // of modification
	SHA256 string    `json:"sha256,omitempty"`
	// Sparse stands in place of SHA256 for a file that is mostly holes: the SHA-256 of what is not zeros, in units of
	// fsx.SparseUnit, each after its place.
	Sparse string `json:"sparse,omitempty"`
}

// same tells whether the content is that of another record of the same kind.
func (f fileRecord) same(g fileRecord) bool { return f.SHA256 == g.SHA256 && f.Sparse == g.Sparse }

// entry is a complete, verified entry.
type entry struct {
	dir string
	rec record
}

func (e *entry) path(name string) string { return filepath.Join(e.dir, filepath.FromSlash(name)) }

// sum returns the SHA-256 of a file of the entry in hex, or "" for an unknown one.
func (e *entry) sum(name string) string {
	for _, f := range e.rec.Files {
		if f.Name == name {
			return f.SHA256
		}
	}
	return ""
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	s := &store{dir: dir, log: log}
	for _, d := range []string{"", "locks", "sources", kindPackage, kindKernel, kindAgent, kindInitramfs, kindTemplate} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("make boot cache: %w", err)
		}
	}
	return s, nil
}

// lock takes the lock of a name.
func (s *store) lock(ctx context.Context, name string, exclusive bool) (func(), error) {
	return fsx.Lock(ctx, filepath.Join(s.dir, "locks", name), exclusive)
}

// find returns an entry that is there and undamaged, without building it. A missing one is ErrNotFound, a damaged one
// ErrCorrupt.
func (s *store) find(ctx context.Context, kind, key string) (*entry, error) {
	var found *entry
	err := s.look(ctx, kind, key, func(e *entry) error {
		e.mark(time.Now())
		found = e
		return nil
	})
	return found, err
}

// look calls do with an entry that is there and undamaged, which stays as it is until do returns. A missing one is
// ErrNotFound, a damaged one ErrCorrupt.
func (s *store) look(ctx context.Context, kind, key string, do func(*entry) error) error {
	unlock, err := s.lock(ctx, kind+"-"+key, false)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := s.open(kind, key)
	if err != nil {
		return err
	}
	return do(e)
}

// buildFunc fills dir, which is empty, and returns what the record shall say beside the files.
type buildFunc func(ctx context.Context, dir string) (meta any, err error)

// obtain returns the entry of a key, and builds it where it is missing or damaged. Of several processes that want it at
// once one builds and the others wait.
func (s *store) obtain(ctx context.Context, kind, key string, build buildFunc) (*entry, error) {
	e, err := s.find(ctx, kind, key)
	if err == nil {
		return e, nil
	}
	if ctx.Err() != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, kind+"-"+key, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err = s.repair(ctx, kind, key)
	if err == nil {
		return e, nil
	}
	if !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrCorrupt) {
		return nil, err
	}
	return s.build(ctx, kind, key, build)
}

// open reads a record and compares the files with it.
func (s *store) open(kind, key string) (*entry, error) {
	e := &entry{dir: filepath.Join(s.dir, kind, key)}
	b, err := os.ReadFile(filepath.Join(e.dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(e.dir); err == nil {
			return nil, fmt.Errorf("boot cache: %s %s: %w: it has no record", kind, key, errs.ErrCorrupt)
		}
		return nil, fmt.Errorf("boot cache: %s %s: %w", kind, key, errs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	if err := json.Unmarshal(b, &e.rec); err != nil {
		return nil, fmt.Errorf("boot cache: %s %s: %w record: %w", kind, key, errs.ErrCorrupt, err)
	}
	for _, f := range e.rec.Files {
		if !fs.ValidPath(f.Name) {
			return nil, fmt.Errorf("boot cache: %s %s: %w record", kind, key, errs.ErrCorrupt)
		}
		info, err := os.Lstat(e.path(f.Name))
		if err != nil || !info.Mode().IsRegular() || info.Size() != f.Size || !info.ModTime().Equal(f.Time) {
			return e, fmt.Errorf("boot cache: %s %s: file %s: %w", kind, key, f.Name, errs.ErrCorrupt)
		}
	}
	return e, nil
}

// repair is open for the holder of the exclusive lock: where only times differ it corrects the record, and what is
// damaged it removes.
func (s *store) repair(ctx context.Context, kind, key string) (*entry, error) {
	e, err := s.open(kind, key)
	if err == nil || !errors.Is(err, errs.ErrCorrupt) {
		return e, err
	}
	if e != nil && s.rehash(ctx, e) {
		return e, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s.log.Warn("boot cache entry is damaged and made again", "kind", kind, "key", key, "reason", err)
	if rerr := s.remove(kind, key); rerr != nil {
		return nil, fmt.Errorf("boot cache: remove damaged entry: %w", rerr)
	}
	return nil, err
}

// rehash tells whether the content of all files is what the record says, and if so writes the record anew.
func (s *store) rehash(ctx context.Context, e *entry) bool {
	for i, f := range e.rec.Files {
		got, err := rehashFile(ctx, e.dir, f)
		if err != nil || !got.same(f) {
			return false
		}
		e.rec.Files[i] = got
	}
	return writeRecord(e) == nil
}

// remove takes an entry away in one step, so that a crash leaves no half of it under its name.
func (s *store) remove(kind, key string) error {
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, kind), tempName(key))
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	return os.Rename(filepath.Join(s.dir, kind, key), filepath.Join(tmp, "removed"))
}

func tempName(key string) string { return fsx.TempPrefix + key + "-*" }

// build makes an entry. The caller holds the exclusive lock.
func (s *store) build(ctx context.Context, kind, key string, fill buildFunc) (*entry, error) {
	e, err := s.prepare(ctx, kind, key, fill)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(e.dir) }()
	return s.place(e, kind, key)
}

// prepare makes an entry under a temporary name, which what dead builders of that name have left makes room for.
func (s *store) prepare(ctx context.Context, kind, name string, fill buildFunc) (e *entry, err error) {
	parent := filepath.Join(s.dir, kind)
	if err := s.sweep(parent, name); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(parent, tempName(name))
	if err != nil {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	meta, err := fill(ctx, tmp)
	if err != nil {
		return nil, err
	}
	e = &entry{dir: tmp}
	if err := e.seal(ctx, meta); err != nil {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	return e, nil
}

// place gives an entry that was prepared its own name. The caller holds the exclusive lock.
func (s *store) place(e *entry, kind, key string) (*entry, error) {
	parent := filepath.Join(s.dir, kind)
	placed := &entry{dir: filepath.Join(parent, key), rec: e.rec}
	if err := os.Rename(e.dir, placed.dir); err != nil {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	if err := fsx.SyncDir(parent); err != nil {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	return placed, nil
}

// renew makes an entry anew, while everybody has the old one, and then replaces that. Of several processes that want it at
// once one does it, and to the others it is ErrInUse.
func (s *store) renew(ctx context.Context, kind, key string, fill buildFunc) (*entry, error) {
	name := "renew-" + key
	done, err := fsx.TryLock(filepath.Join(s.dir, "locks", kind+"-"+name), true)
	if err != nil {
		return nil, err
	}
	defer done()
	e, err := s.prepare(ctx, kind, name, fill)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(e.dir) }()
	unlock, err := s.lock(ctx, kind+"-"+key, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.remove(kind, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("boot cache: %w", err)
	}
	return s.place(e, kind, key)
}

// sweep removes what dead builders of the key left.
func (s *store) sweep(parent, key string) error {
	names, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("boot cache: %w", err)
	}
	prefix := strings.TrimSuffix(tempName(key), "*")
	for _, n := range names {
		if strings.HasPrefix(n.Name(), prefix) {
			if err := os.RemoveAll(filepath.Join(parent, n.Name())); err != nil {
				return fmt.Errorf("boot cache: remove left-over: %w", err)
			}
		}
	}
	return nil
}

// seal hashes and syncs all files of an entry and writes its record.
func (e *entry) seal(ctx context.Context, meta any) (err error) {
	if e.rec.Meta, err = json.Marshal(meta); err != nil {
		return err
	}
	var dirs []string
	err = filepath.WalkDir(e.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, p)
			return nil
		}
		name, err := filepath.Rel(e.dir, p)
		if err != nil {
			return err
		}
		f, err := hashFile(ctx, e.dir, filepath.ToSlash(name), true)
		e.rec.Files = append(e.rec.Files, f)
		return err
	})
	if err != nil {
		return err
	}
	if err := writeRecord(e); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := fsx.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func writeRecord(e *entry) error {
	b, err := json.MarshalIndent(e.rec, "", "\t")
	if err != nil {
		return err
	}
	return fsx.WriteFile(filepath.Join(e.dir, recordName), append(b, '\n'), 0o600)
}

// hashFile describes a file of dir, and syncs it where sync is set.
func hashFile(ctx context.Context, dir, name string, sync bool) (fileRecord, error) {
	mode := os.O_RDONLY
	if sync {
		mode = os.O_RDWR // some systems sync files only that are open for writing
	}
	return describe(ctx, dir, name, mode, func(f *os.File) (bool, error) {
		if sync {
			if err := f.Sync(); err != nil {
				return false, err
			}
		}
		info, err := f.Stat()
		return err == nil && info.Size() >= minSparse && fsx.Allocated(info) < info.Size()/2, err
	})
}

// minSparse is how large, in bytes, a file must be for its holes to be left out of its digest.
const minSparse = 64 << 20

// rehashFile describes a file as its record does.
func rehashFile(ctx context.Context, dir string, was fileRecord) (fileRecord, error) {
	return describe(ctx, dir, was.Name, os.O_RDONLY, func(*os.File) (bool, error) { return was.Sparse != "", nil })
}

func describe(ctx context.Context, dir, name string, mode int, asSparse func(*os.File) (bool, error)) (rec fileRecord, err error) {
	f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), mode, 0)
	if err != nil {
		return rec, err
	}
	defer func() { _ = f.Close() }()
	sparse, err := asSparse(f)
	if err != nil {
		return rec, err
	}
	h := sha256.New()
	if sparse {
		err = fsx.ReadSparse(ctx, f, func(b []byte, at int64) error {
			for unit := range slices.Chunk(b, fsx.SparseUnit) {
				h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
				h.Write(unit)
				at += int64(len(unit))
			}
			return nil
		})
	} else {
		_, err = io.Copy(h, &ctxReader{ctx, f})
	}
	if err != nil {
		return rec, err
	}
	info, err := f.Stat()
	if err != nil {
		return rec, err
	}
	rec = fileRecord{Name: name, Size: info.Size(), Time: info.ModTime().UTC()}
	if sum := hex.EncodeToString(h.Sum(nil)); sparse {
		rec.Sparse = sum
	} else {
		rec.SHA256 = sum
	}
	return rec, nil
}

// ctxReader ends reading with the cause of its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
