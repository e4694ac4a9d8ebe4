package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/logs"
)

// logs sends what a container wrote, also one of which there are only files.
func (e *Engine) logs(ctx context.Context, req api.LogsRequest, st *api.Stream, accept func() error) error {
	if err := CheckID(req.ID); err != nil {
		return err
	}
	if !req.Stdout && !req.Stderr {
		return fmt.Errorf("read log of container %s: %w: ask for stdout, stderr, or both", req.ID, errs.ErrInvalid)
	}
	var live *logs.Log
	c, err := e.get(req.ID)
	switch {
	case err == nil:
		live = c.log
	case !errors.Is(err, errs.ErrNotFound):
		return err
	}
	dir, err := e.backend.LogDir(ctx, req.ID)
	if err != nil {
		return fmt.Errorf("read log of container %s: %w", req.ID, err)
	}
	if err := accept(); err != nil {
		return err
	}
	ctx = st.CloseRead(ctx)
	q := logs.Query{Stdout: req.Stdout, Stderr: req.Stderr, Since: req.Since, Until: req.Until, Tail: req.Tail, Follow: req.Follow}
	err = logs.Read(ctx, dir, live, q, func(l logs.Line) error {
		return st.SendJSON(api.FrameLog, api.LogRecord{At: l.At, Stderr: l.Stderr, Line: l.Text, Lost: l.Lost})
	})
	if ctx.Err() != nil {
		return nil // the host has gone
	}
	if err != nil {
		return fmt.Errorf("read log of container %s: %w", req.ID, err)
	}
	return st.SendJSON(api.FrameExit, api.Exit{})
}
