package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
)

// minPartial is the least that is worth keeping of a blob, in bytes.
const minPartial = 64 << 10

// pullPrefix begins the name of a file in a session that a blob is received into; its digest follows. The holder of the
// blob's lock is the only one that has such a file, in all sessions that live.
const pullPrefix = "pull-"

func (b *blobStore) partialPath(hex string) string { return filepath.Join(b.root, "partial", hex) }

// partialBlob is a blob that is being received. Its Read yields the blob from the beginning: first what an earlier pull
// left of it, then what rest yields, which it keeps. Nothing of it is trusted before Commit has compared the digest.
type partialBlob struct {
	*blobWriter
	have int64     // bytes that were there
	at   int64     // bytes of them that have been read
	rest io.Reader // the blob from have on
	hex  string
}

// resume opens what there is of a blob for going on with it. The caller holds the blob's lock.
func (b *blobStore) resume(d digest.Digest, size int64) (*partialBlob, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	name := filepath.Join(b.session, pullPrefix+d.Encoded())
	if err := os.Rename(b.partialPath(d.Encoded()), name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("take what there is of blob %s: %w", d, err)
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have > size {
		have = 0
		if err = f.Truncate(0); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("go on with blob %s: %w", d, err), f.Close(), os.Remove(name))
	}
	return &partialBlob{blobWriter: newBlobWriter(b, f), have: have, hex: d.Encoded()}, nil
}

// Read reads the next bytes of the blob.
func (p *partialBlob) Read(buf []byte) (int, error) {
	if p.at < p.have {
		n, err := p.f.ReadAt(buf[:min(int64(len(buf)), p.have-p.at)], p.at)
		if n == 0 {
			return 0, fmt.Errorf("read what there is of a blob: %w", err)
		}
		p.at += int64(n)
		p.account(buf[:n])
		return n, nil
	}
	n, err := p.rest.Read(buf)
	if n > 0 {
		if _, werr := p.Write(buf[:n]); werr != nil {
			return n, werr
		}
	}
	return n, err
}

// end keeps what has come of a blob that was not committed for lack of the rest, and discards any other.
func (p *partialBlob) end(why error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return nil
	}
	p.done = true
	path := p.f.Name()
	err := p.f.Close()
	if max(p.have, p.status.Offset) >= minPartial && mayGoOn(why) {
		err = errors.Join(err, os.Rename(path, p.b.partialPath(p.hex)))
	} else {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return fmt.Errorf("put away what there is of a blob: %w", err)
	}
	return nil
}

// mayGoOn tells whether an error leaves what has come of a blob good to go on from.
func mayGoOn(why error) bool {
	return why != nil && !isWriteError(why) && !errors.Is(why, errs.ErrCorrupt) && !errors.Is(why, errs.ErrInvalid)
}

// rescue keeps what a dead process had received of blobs. The caller holds the dead session's lock.
func (b *blobStore) rescue(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		hex, ok := strings.CutPrefix(e.Name(), pullPrefix)
		info, err := e.Info()
		if !ok || err != nil || info.Size() < minPartial {
			continue
		}
		if old, err := os.Stat(b.partialPath(hex)); err == nil && old.Size() >= info.Size() {
			continue
		}
		_ = os.Rename(filepath.Join(dir, e.Name()), b.partialPath(hex)) // it is fetched again then
	}
}
