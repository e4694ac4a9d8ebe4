package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const kindTemplate = "templates"

// TemplateKey names a template: a machine that has booted and was saved, for others to go on from. Everything that makes
// machines differ belongs to it.
type TemplateKey struct {
	Assets string // Assets.Digest
	Shape  string // of the machine, as its driver tells
}

// String returns the key as it names the directory.
func (k TemplateKey) String() string { return digest("template 1", k.Assets, k.Shape)[:32] }

// Template returns the directory of a template in the cache. Where it is not there, damaged as far as sizes and times of its
// files tell, or another one's, build makes it in a directory that it is given, as files there; of several processes that want it at once one builds and the others wait.
// The files must not be changed by anybody from then on. Of cfg only Dir, Arch and Logger count.
//
// A template that nobody used for a month is removed when another one is made, and so are the oldest ones of those that
// take more than 4 GiB together. The errors are those of build and of the
// file system.
func Template(ctx context.Context, cfg Config, key TemplateKey, build func(ctx context.Context, dir string) error) (string, error) {
	r, err := newResolver(cfg)
	if err != nil {
		return "", err
	}
	built := false
	get := func() (*entry, error) {
		return r.store.obtain(ctx, kindTemplate, key.String(), func(ctx context.Context, dir string) (any, error) {
			built = true
			return key, build(ctx, dir)
		})
	}
	e, err := get()
	if err == nil && !built && !e.isTemplate(key) {
		r.log.Warn("template of a machine is another one's and made again", "key", key.String())
		if err = DropTemplate(ctx, cfg, key); err == nil {
			e, err = get()
		}
	}
	if err != nil {
		return "", fmt.Errorf("template of a machine: %w", err)
	}
	if built {
		now := time.Now()
		if err := markVerified(e.dir, now); err != nil {
			r.log.Debug("mark a template as verified", "err", err) // it is read once more
		}
		r.store.prune(now)
		r.store.pruneTemplates(now, maxTemplates)
	}
	return e.dir, nil
}

// isTemplate tells whether an entry was made as the template of the key.
func (e *entry) isTemplate(key TemplateKey) bool {
	var made TemplateKey
	return json.Unmarshal(e.rec.Meta, &made) == nil && made == key
}

// The file in a template whose time tells when it was read whole last, and how long that holds.
const (
	verifiedName = "verified"
	verifiedFor  = 24 * time.Hour
)

// VerifyTemplate reads a template whole and compares it with what was written when it was made: what happens to a file
// without a change of its size or time shows in no other way. One that was found to be right within the last day is not read
// again. A damaged one is removed, and ErrCorrupt.
func VerifyTemplate(ctx context.Context, cfg Config, key TemplateKey) error {
	r, err := newResolver(cfg)
	if err != nil {
		return err
	}
	e, err := r.store.find(ctx, kindTemplate, key.String())
	if err != nil {
		return err
	}
	mark := filepath.Join(e.dir, verifiedName)
	if info, err := os.Stat(mark); err == nil && time.Since(info.ModTime()).Abs() < verifiedFor {
		return nil
	}
	for _, f := range e.rec.Files {
		got, err := hashFile(ctx, e.dir, f.Name, false)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("verify template: %w: it was removed meanwhile", errs.ErrNotFound)
		case err != nil || got.SHA256 != f.SHA256:
			return errors.Join(fmt.Errorf("template %s: file %s: %w: it is not as it was made", key, f.Name, errs.ErrCorrupt), err, DropTemplate(ctx, cfg, key))
		}
	}
	return markVerified(e.dir, time.Now())
}

func markVerified(dir string, now time.Time) error {
	mark := filepath.Join(dir, verifiedName)
	err := os.WriteFile(mark, nil, 0o600)
	if err == nil {
		err = os.Chtimes(mark, now, now)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be pruned by now
		return fmt.Errorf("mark template as verified: %w", err)
	}
	return nil
}

// DropTemplate removes a template that turned out to be useless, so that the next one who wants it makes it anew. One
// that is not there is no error.
func DropTemplate(ctx context.Context, cfg Config, key TemplateKey) error {
	r, err := newResolver(cfg)
	if err != nil {
		return err
	}
	unlock, err := r.store.lock(ctx, kindTemplate+"-"+key.String(), true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.store.remove(kindTemplate, key.String()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove template: %w", err)
	}
	return nil
}
