package boot

import (
	"context"
	"fmt"
	"os"
	"time"
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

// Template returns the directory of a template in the cache. Where it is not there, or damaged, build makes it in a
// directory that it is given, as files there; of several processes that want it at once one builds and the others wait.
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
	e, err := r.store.obtain(ctx, kindTemplate, key.String(), func(ctx context.Context, dir string) (any, error) {
		built = true
		return key, build(ctx, dir)
	})
	if err != nil {
		return "", fmt.Errorf("template of a machine: %w", err)
	}
	if built {
		now := time.Now()
		r.store.prune(now)
		r.store.pruneTemplates(now, maxTemplates)
	}
	return e.dir, nil
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
