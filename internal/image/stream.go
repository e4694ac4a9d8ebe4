package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stallReader ends a body whose Read yields nothing for too long. Closing a body makes its Read return.
type stallReader struct {
	body  io.ReadCloser
	timer *time.Timer
	after time.Duration
}

func newStallReader(body io.ReadCloser, after time.Duration) *stallReader {
	s := &stallReader{body: body, after: after, timer: time.AfterFunc(after, func() { _ = body.Close() })}
	s.timer.Stop()
	return s
}

// Read reads from the body.
func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.after)
	n, err := s.body.Read(p)
	if !s.timer.Stop() && err != nil {
		return n, fmt.Errorf("registry sent nothing for %s: %w", s.after, errs.ErrUnavailable)
	}
	return n, err
}

// Close closes the body.
func (s *stallReader) Close() error {
	s.timer.Stop()
	return s.body.Close()
}

// blobStream reads a blob from a registry and goes on where a connection broke off.
type blobStream struct {
	ctx   context.Context
	repo  *repo
	desc  ocispec.Descriptor
	off   int64
	body  io.ReadCloser
	tries int
	seen  func(off int64) // told of progress; may be nil
}

// Read reads the next bytes. After the size of the descriptor it returns io.EOF, whatever the registry would still send.
func (b *blobStream) Read(p []byte) (int, error) {
	for {
		if b.off >= b.desc.Size {
			return 0, io.EOF
		}
		n, err := b.once(p[:min(int64(len(p)), b.desc.Size-b.off)])
		if n > 0 {
			b.off += int64(n)
			b.tries = 0
			if b.seen != nil {
				b.seen(b.off)
			}
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		_ = b.Close()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("registry broke off after %d of %d bytes: %w", b.off, b.desc.Size, io.ErrUnexpectedEOF)
		}
		b.tries++
		if b.ctx.Err() != nil || b.tries >= b.repo.tries || !mayHeal(err) {
			return 0, registryError("blob "+b.desc.Digest.String(), ctxError(b.ctx, err))
		}
		b.repo.s.log.Debug("blob is resumed", "digest", b.desc.Digest, "offset", b.off, "err", err)
		if err := b.repo.s.pause(b.ctx, b.tries, err); err != nil {
			return 0, registryError("blob "+b.desc.Digest.String(), err)
		}
	}
}

func (b *blobStream) once(p []byte) (int, error) {
	if b.body == nil {
		resp, err := b.repo.get(b.ctx, "/blobs/"+b.desc.Digest.String(), nil, b.off, b.desc.Size)
		if b.off > 0 && statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
			return 0, fmt.Errorf("registry has no more than %d of %d bytes: %w", b.off, b.desc.Size, errs.ErrCorrupt)
		}
		if err != nil {
			return 0, err
		}
		b.body = newStallReader(resp.Body, b.repo.s.stall)
		if resp.StatusCode == http.StatusOK && b.off > 0 {
			if _, err := io.CopyN(io.Discard, b.body, b.off); err != nil {
				return 0, err
			}
		}
	}
	return b.body.Read(p)
}

// Close ends the request.
func (b *blobStream) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}
