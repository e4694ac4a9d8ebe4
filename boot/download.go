package boot

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

const (
	maxDownload  = 2 << 30 // bytes of one file
	stallTimeout = time.Minute
	attempts     = 3 // a connection that breaks off is taken up again where it broke
)

// download writes what is at address to the file dst. size is what is expected, 0 for unknown. The caller checks the
// digest. A server that sends nothing for a minute is given up.
func download(ctx context.Context, address string, size int64, dst string, rep *reporter) error {
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer func() { _ = out.Close() }()
	transport := http.DefaultTransport
	if t, ok := transport.(*http.Transport); ok {
		own := t.Clone()
		defer own.CloseIdleConnections()
		transport = own
	}
	d := &downloader{client: &http.Client{Transport: transport}, address: address, out: out, size: size, rep: rep}
	for range attempts {
		var again bool
		if again, err = d.try(ctx); err == nil {
			return out.Close()
		}
		if !again || ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("download: %w", err)
}

type downloader struct {
	client  *http.Client
	address string
	out     *os.File
	done    int64 // bytes written
	size    int64
	rep     *reporter
}

// try sends one request for what is missing. again tells whether another may go better.
func (d *downloader) try(ctx context.Context) (again bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTimeout, func() {
		cancel(fmt.Errorf("%w: the server has sent nothing for %v", errs.ErrUnavailable, stallTimeout))
	})
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.address, nil)
	if err != nil {
		return false, err
	}
	if d.done > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(d.done, 10)+"-")
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return true, d.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if again, err := d.begin(resp); err != nil {
		return again, err
	}
	body := &progressReader{r: &watchedReader{resp.Body, stalled}, rep: d.rep, step: StepDownload, done: d.done, last: d.done, total: d.size}
	n, err := io.Copy(d.out, io.LimitReader(body, maxDownload+1-d.done))
	d.done += n
	if err != nil {
		return true, d.transportError(ctx, err)
	}
	if d.done > maxDownload {
		return false, fmt.Errorf("%w: more than %d GiB", errs.ErrInvalid, maxDownload>>30)
	}
	d.rep.report(StepDownload, d.done, d.done)
	return false, nil
}

// begin looks at the answer and puts the file where the body continues it.
func (d *downloader) begin(resp *http.Response) (again bool, err error) {
	switch {
	case resp.StatusCode == http.StatusPartialContent && d.done > 0:
		if start := "bytes " + strconv.FormatInt(d.done, 10) + "-"; len(resp.Header.Get("Content-Range")) < len(start) || resp.Header.Get("Content-Range")[:len(start)] != start {
			return false, fmt.Errorf("%w: the server sent another range than was asked for", errs.ErrUnavailable)
		}
	case resp.StatusCode == http.StatusOK:
		if _, err := d.out.Seek(0, io.SeekStart); err != nil {
			return false, err
		}
		if err := d.out.Truncate(0); err != nil {
			return false, err
		}
		d.done = 0
		if d.size == 0 && resp.ContentLength > 0 {
			d.size = resp.ContentLength
		}
	default:
		return resp.StatusCode >= 500, fmt.Errorf("%w: the server answers %s", errs.ErrUnavailable, resp.Status)
	}
	d.rep.report(StepDownload, d.done, d.size)
	return false, nil
}

// transportError names the cause of a request that was given up, and leaves out the URL, which may hold a password.
func (d *downloader) transportError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if u, ok := err.(*url.Error); ok {
		err = u.Err
	}
	return fmt.Errorf("%w: %w", errs.ErrUnavailable, err)
}

// watchedReader puts off a timer with each read.
type watchedReader struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.timer.Reset(stallTimeout)
	return n, err
}
