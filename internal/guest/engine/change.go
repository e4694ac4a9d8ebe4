package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

func (e *Engine) pause(ctx context.Context, req api.PauseRequest) (api.PauseReply, error) {
	c, err := e.get(req.ID)
	if err != nil {
		return api.PauseReply{}, err
	}
	if req.Resume {
		return api.PauseReply{}, c.resume(ctx)
	}
	return api.PauseReply{}, c.pause(ctx)
}

// pause freezes a running container. Nothing joins it from the beginning on.
func (c *container) pause(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if err := c.move(running, paused); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	if err := c.sb.Freeze(ctx, true); err != nil {
		_ = c.move(paused, running) // it may have exited
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) resume(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if s := c.get(); s != paused {
		return fmt.Errorf("resume container %s: %w: it is %s", c.id, errs.ErrConflict, s)
	}
	if err := c.sb.Freeze(ctx, false); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	_ = c.move(paused, running) // it may have exited
	return nil
}

func (e *Engine) update(ctx context.Context, req api.UpdateRequest) (api.UpdateReply, error) {
	if err := CheckResources(req.Resources); err != nil {
		return api.UpdateReply{}, fmt.Errorf("update container %.150q: %w", req.ID, err)
	}
	c, err := e.get(req.ID)
	if err != nil {
		return api.UpdateReply{}, err
	}
	if err := c.lock(ctx); err != nil {
		return api.UpdateReply{}, err
	}
	defer c.unlock()
	if c.get() == removed {
		return api.UpdateReply{}, fmt.Errorf("container %s: %w", c.id, errs.ErrNotFound)
	}
	if err := c.sb.Update(req.Resources); err != nil {
		return api.UpdateReply{}, fmt.Errorf("update container %s: %w", c.id, err)
	}
	return api.UpdateReply{}, nil
}

// oom tells subscribers that the kernel killed a process of a container.
func (e *Engine) oom(id string) {
	e.events.publish(api.Event{Kind: api.EventOOM, ID: id, At: time.Now()})
}
