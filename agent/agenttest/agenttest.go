// Package agenttest is an agent without a machine, for tests of what is built on agents. It runs the agent's own code for
// everything but the containers themselves: their processes are Go functions.
package agenttest

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// Kernel is the release of the kernel that a Ping names.
const Kernel = "6.1.0-agenttest"

// Command is what a container's process does. Its result is the exit code. It must return soon after ctx ends, which
// happens when the process is killed.
type Command func(ctx context.Context, p *Process) int

// Agent is a running agent. Make one with New.
type Agent struct {
	// OnConfigure is called with each Configure; its error is the reply. Nil agrees to everything, and nothing else comes of
	// it, nor of Wake and Settle: there is no disk and no clock. Set it before the first call.
	OnConfigure func(api.ConfigureRequest) error
	// OnPoweroff is called once, when the caller of a Poweroff has its reply. Nil does nothing. Set it before the first
	// call. It must not wait for Close.
	OnPoweroff func()

	backend *backend
	engine  *engine.Engine
	mux     api.Mux
	ctx     context.Context
	cancel  context.CancelFunc
	off     sync.Once

	mu     sync.Mutex
	closed bool
	conns  sync.WaitGroup
}

// New returns an agent. The process of a container runs the command that its first argument names; one that is not in
// commands does not exist. Layers are not looked at, but for those in missing: a container with such a one waits for it
// until its creation is cancelled. Close ends the agent.
func New(commands map[string]Command, missing ...string) *Agent {
	b := &backend{commands: commands, missing: missing}
	a := &Agent{backend: b, engine: engine.New(b)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.engine.Register(&a.mux)
	api.Handle(&a.mux, api.Ping, func(context.Context, api.PingRequest) (api.PingReply, error) {
		return api.PingReply{Version: api.Version, Kernel: Kernel}, nil
	})
	api.Handle(&a.mux, api.Configure, func(_ context.Context, req api.ConfigureRequest) (api.ConfigureReply, error) {
		if a.OnConfigure == nil {
			return api.ConfigureReply{}, nil
		}
		return api.ConfigureReply{}, a.OnConfigure(req)
	})
	api.Handle(&a.mux, api.Wake, func(context.Context, api.WakeRequest) (api.WakeReply, error) { return api.WakeReply{}, nil })
	api.Handle(&a.mux, api.Settle, func(context.Context, api.SettleRequest) (api.SettleReply, error) { return api.SettleReply{}, nil })
	api.Handle(&a.mux, api.LeaveDisk, func(context.Context, api.LeaveDiskRequest) (rep api.LeaveDiskReply, err error) {
		if !a.engine.Idle() {
			err = fmt.Errorf("leave the data disk: %w", errs.ErrConflict)
		}
		return rep, err
	})
	api.Handle(&a.mux, api.VsockCheck, func(context.Context, api.VsockCheckRequest) (api.VsockCheckReply, error) {
		return api.VsockCheckReply{}, fmt.Errorf("check vsock: %w: there is no kernel", errs.ErrUnsupported)
	})
	api.HandleThen(&a.mux, api.Poweroff, func(ctx context.Context, _ api.PoweroffRequest) (api.PoweroffReply, error) {
		return api.PoweroffReply{}, a.engine.Close(ctx)
	}, func(ctx context.Context) {
		<-ctx.Done()
		if a.OnPoweroff != nil {
			a.off.Do(a.OnPoweroff)
		}
	})
	return a
}

// Dial opens a stream to the agent. It is an api.DialFunc. After Close it returns ErrUnavailable.
func (a *Agent) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	host, guest := net.Pipe()
	if !a.begin() {
		host.Close()
		return nil, fmt.Errorf("dial agent: %w", errs.ErrUnavailable)
	}
	go func() {
		defer a.conns.Done()
		a.mux.ServeConn(a.ctx, guest)
	}()
	return host, nil
}

// Serve serves one stream that came in another way, and closes it. It returns when the stream's call has ended.
func (a *Agent) Serve(conn net.Conn) {
	if !a.begin() {
		conn.Close()
		return
	}
	defer a.conns.Done()
	a.mux.ServeConn(a.ctx, conn)
}

// begin counts a stream, where the agent is not closed.
func (a *Agent) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.conns.Add(1)
	return true
}

// Close ends the agent as a crash of its machine would: streams break, processes are killed. It returns when all of them
// have ended. A second call waits too.
func (a *Agent) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	_ = a.engine.Close(context.Background())
	a.conns.Wait()
	a.backend.close()
}
