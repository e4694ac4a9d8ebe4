package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/splice"
)

// The limits of the path of a socket on the host, in bytes: what the smallest of the systems takes, and what a name needs
// under which the socket is made.
const (
	maxName = 103
	maxDir  = maxName - len("/.0123456789/s")
)

const acceptPause = 50 * time.Millisecond // after an error, as when the process may open no more files

// CheckPath returns ErrInvalid for what cannot be the path of a socket on the host.
func CheckPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > maxName || len(filepath.Dir(path)) > maxDir || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w path of a socket on the host %.200q: use an absolute path of at most %d bytes, its directory at most %d", errs.ErrInvalid, path, maxName, maxDir)
	}
	return nil
}

// Published is a socket on the host that leads elsewhere.
type Published struct {
	l      *net.UnixListener
	path   string
	file   os.FileInfo
	dial   Dial
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Publish makes a socket on the host whose connections dial leads on. Only the program's user can connect: the socket has mode
// 0600, and its directory, where it is made, 0700. A socket on which nobody listens is replaced; anything else that is there
// is ErrConflict.
func Publish(path string, dial Dial, log *slog.Logger) (*Published, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	p := &Published{path: path, dial: dial, log: log}
	if err := p.bind(); err != nil {
		return nil, fmt.Errorf("publish socket %s: %w: %w", path, errs.ErrUnavailable, err)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// vacant tells whether a path may become a socket's.
func vacant(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("publish socket %s: %w: %w", path, errs.ErrUnavailable, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("publish socket %s: %w: there is something else: remove it or choose another path", path, errs.ErrConflict)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("publish socket %s: %w: somebody listens there: choose another path", path, errs.ErrConflict)
	}
	return nil // it is replaced
}

// bind makes the socket in a directory that nobody else can enter, and gives it its name when it has its mode.
func (p *Published) bind() (err error) {
	dir := filepath.Dir(p.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "s")
	if p.l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name}); err != nil {
		return err
	}
	p.l.SetUnlinkOnClose(false)
	if err = os.Chmod(name, 0o600); err == nil {
		p.file, err = os.Lstat(name)
	}
	if err == nil {
		err = os.Rename(name, p.path)
	}
	if err != nil {
		p.l.Close()
	}
	return err
}

// Stop refuses new connections, removes the socket and breaks the connections. It does not wait. A second call does nothing.
func (p *Published) Stop() {
	if p.ctx.Err() != nil {
		return
	}
	p.cancel()
	p.l.Close()
	if st, err := os.Lstat(p.path); err == nil && os.SameFile(st, p.file) {
		_ = os.Remove(p.path) // one that stays is replaced by the next
	}
}

// Close is Stop, and returns when nothing of the socket runs any more.
func (p *Published) Close() {
	p.Stop()
	p.wg.Wait()
}

func (p *Published) accept() {
	slots := make(chan struct{}, maxConns)
	for {
		c, err := p.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(acceptPause):
			case <-p.ctx.Done():
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-p.ctx.Done():
			c.Close()
			return
		}
		p.wg.Go(func() {
			defer func() { <-slots }()
			p.serve(c)
		})
	}
}

func (p *Published) serve(c *net.UnixConn) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	in, err := p.dial(ctx)
	if err != nil {
		p.log.Debug("a connection to a container's socket was not made", "socket", p.path, "err", err)
		c.Close()
		return
	}
	splice.Join(p.ctx, c, in)
}
