package boot

import (
	"cmp"
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

// Template calls use with the directory of a template in the cache, whose files stay as they are until use returns. Where it
// is not there, damaged as far as sizes and times of its files tell, or another one's, build makes it first in a directory
// that it is given, as files there; of several processes that want it at once one builds and the others wait. Nobody may
// change the files from then on. Of cfg only Dir, Arch and Logger count.
//
// A template that nobody used for a month is removed when another one is made, and so are the oldest ones of those that
// take more than 4 GiB together. The errors are those of build, of the file system, and of use.
func Template(ctx context.Context, cfg Config, key TemplateKey, build func(ctx context.Context, dir string) error, use func(dir string) error) error {
	r, err := newResolver(cfg)
	if err != nil {
		return err
	}
	for range templateTries {
		var used bool
		if used, err = r.use(ctx, key, use); used {
			return err
		}
		if err == nil {
			err = r.build(ctx, key, build)
		}
		if err != nil {
			break
		}
	}
	return fmt.Errorf("template of a machine: %w", cmp.Or(err, errs.ErrUnavailable))
}

// templateTries is how often a template is made that others remove at once.
const templateTries = 3

// use calls use with a template that is there and sound.
func (r *resolver) use(ctx context.Context, key TemplateKey, use func(dir string) error) (used bool, err error) {
	err = r.store.look(ctx, kindTemplate, key.String(), func(e *entry) error {
		if !e.isTemplate(key) {
			return nil
		}
		used = true
		e.mark(time.Now())
		return use(e.dir)
	})
	if !used && (errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrCorrupt)) {
		err = nil
	}
	return used, err
}

// build makes a template, unless somebody has made it meanwhile.
func (r *resolver) build(ctx context.Context, key TemplateKey, build func(ctx context.Context, dir string) error) error {
	built := false
	e, err := r.store.obtain(ctx, kindTemplate, key.String(), func(ctx context.Context, dir string) (any, error) {
		built = true
		return key, build(ctx, dir)
	})
	switch {
	case err != nil:
		return err
	case built:
		r.settle(e)
	case !e.isTemplate(key):
		r.log.Warn("template of a machine is another one's and made again", "key", key.String())
		return r.drop(ctx, key)
	}
	return nil
}

// settle is what follows when a template was made.
func (r *resolver) settle(e *entry) {
	now := time.Now()
	if err := markVerified(e.dir, now); err != nil {
		r.log.Debug("mark a template as verified", "err", err) // it is read once more
	}
	r.store.prune(now)
	r.store.pruneTemplates(now, maxTemplates)
}

// RenewTemplate makes a template anew and replaces that of the key. Who uses the old one, or starts to meanwhile, is not
// disturbed. Where another process is about to renew it, it is ErrInUse.
func RenewTemplate(ctx context.Context, cfg Config, key TemplateKey, build func(ctx context.Context, dir string) error) error {
	r, err := newResolver(cfg)
	if err != nil {
		return err
	}
	e, err := r.store.renew(ctx, kindTemplate, key.String(), func(ctx context.Context, dir string) (any, error) { return key, build(ctx, dir) })
	if err != nil {
		return fmt.Errorf("renew template of a machine: %w", err)
	}
	r.settle(e)
	return nil
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
	err = r.store.look(ctx, kindTemplate, key.String(), func(e *entry) error { return e.verify(ctx, key) })
	if errors.Is(err, errs.ErrCorrupt) {
		err = errors.Join(err, r.drop(ctx, key))
	}
	return err
}

// verify reads the template whole, where nobody has done so for a day.
func (e *entry) verify(ctx context.Context, key TemplateKey) error {
	if info, err := os.Stat(filepath.Join(e.dir, verifiedName)); err == nil && time.Since(info.ModTime()).Abs() < verifiedFor {
		return nil
	}
	for _, f := range e.rec.Files {
		got, err := rehashFile(ctx, e.dir, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || !got.same(f) {
			return errors.Join(fmt.Errorf("template %s: file %s: %w: it is not as it was made", key, f.Name, errs.ErrCorrupt), err)
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
	return r.drop(ctx, key)
}

func (r *resolver) drop(ctx context.Context, key TemplateKey) error {
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
