package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// alive finds a container that runs, paused or not.
func (e *Engine) alive(id string) (*container, error) {
	c, err := e.get(id)
	if err != nil {
		return nil, err
	}
	if s := c.get(); s < running || s >= exited {
		return nil, fmt.Errorf("container %s: %w: it is %s", c.id, errs.ErrConflict, s)
	}
	return c, nil
}

func (e *Engine) stats(_ context.Context, req api.StatsRequest) (api.StatsReply, error) {
	c, err := e.alive(req.ID)
	if err != nil {
		return api.StatsReply{}, err
	}
	rep, err := c.sb.Stats()
	if err != nil {
		return rep, fmt.Errorf("measure container %s: %w", c.id, err)
	}
	return rep, nil
}

func (e *Engine) top(ctx context.Context, req api.TopRequest) (api.TopReply, error) {
	c, err := e.alive(req.ID)
	if err != nil {
		return api.TopReply{}, err
	}
	list, err := c.sb.Top(ctx)
	if err != nil {
		return api.TopReply{}, fmt.Errorf("list the processes of container %s: %w", c.id, err)
	}
	return fit(list)
}

// fit makes a reply that fits into a frame: it cuts commands shorter where they are too long together.
func fit(list []api.ProcessInfo) (rep api.TopReply, err error) {
	const slack = 4 << 10
	for limit := 4 << 10; ; limit /= 2 {
		for i := range list {
			list[i].Command = cut(list[i].Command, limit)
		}
		b, err := json.Marshal(list)
		if err != nil {
			return rep, fmt.Errorf("encode processes: %w", err)
		}
		if len(b) <= api.MaxFrame-slack {
			return api.TopReply{Processes: list}, nil
		}
		if limit == 0 {
			list = list[:len(list)/2]
		}
	}
}

// cut returns the beginning of a command: at most n bytes, of which each argument counts one more than it has.
func cut(command []string, n int) []string {
	for i, arg := range command {
		if len(arg)+1 > n {
			return append(command[:i:i], strings.ToValidUTF8(arg[:max(0, n-1)], ""))
		}
		n -= len(arg) + 1
	}
	return command
}
