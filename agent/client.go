// Package agent is the host's side of the agent in a guest: a Client calls it over streams that a dial function opens.
//
// The wire API is in package api, the agent itself in agent/cmd/arcbox-agent, and a stand-in for tests that runs the
// agent's own code without a machine in package agenttest.
package agent

import (
	"context"
	"fmt"
	"reflect"
	"sync/atomic"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Client calls the agent of one guest. Each call has a stream of its own, and there is nothing to close. Its methods may
// be called from many goroutines.
//
// The first call of a client asks the agent for its version first; one that speaks another is ErrUnsupported. Errors of
// the agent wrap the sentinel that they had in the guest. An agent that cannot be reached is ErrUnavailable. When a ctx
// ends, the call's handler in the guest is cancelled, and the error is that of ctx.
type Client struct {
	dial api.DialFunc
	same atomic.Bool // the agent has told its version, and it is ours

	guest, host map[string]string // ids of containers: from the host's to the guest's, and back; nil for the same
}

// New returns a client whose streams dial opens. It calls nothing yet.
func New(dial api.DialFunc) *Client { return &Client{dial: dial} }

// WithAliases lets the client name containers otherwise than the guest: aliases has the guest's ids by those of the host.
// It is called before everything else, and returns the client.
func (c *Client) WithAliases(aliases map[string]string) *Client {
	if len(aliases) > 0 {
		c.guest, c.host = aliases, make(map[string]string, len(aliases))
		for host, guest := range aliases {
			c.host[guest] = host
		}
	}
	return c
}

// alias replaces the host's id of a container in a request, which has it in the field ID, by the guest's.
func (c *Client) alias(req any) {
	if c.guest == nil {
		return
	}
	id := reflect.ValueOf(req).Elem().FieldByName("ID")
	if !id.IsValid() || id.Kind() != reflect.String {
		return
	}
	if guest, ok := c.guest[id.String()]; ok {
		id.SetString(guest)
	}
}

// Ping asks whether the agent answers, and what it is.
func (c *Client) Ping(ctx context.Context) (api.PingReply, error) {
	rep, err := api.Call(ctx, c.dial, api.Ping, api.PingRequest{})
	if err != nil {
		return rep, err
	}
	if rep.Version != api.Version {
		return rep, fmt.Errorf("ping: %w: the agent speaks version %d of the protocol and this program version %d: "+
			"let it boot the agent it was built with", errs.ErrUnsupported, rep.Version, api.Version)
	}
	c.same.Store(true)
	return rep, nil
}

// Configure gives the guest what is its own: its data disk, its name, the time. It is called once, before the first
// Create, which waits for a disk that is not there yet. A data disk later is ErrConflict, a name that cannot be one
// ErrInvalid.
func (c *Client) Configure(ctx context.Context, req api.ConfigureRequest) error {
	_, err := call(ctx, c, api.Configure, req)
	return err
}

// VsockCheck lets the agent call itself over AF_VSOCK, which proves that it can be reached there. A guest without
// AF_VSOCK is ErrUnsupported; one that has just booted may not have it yet.
func (c *Client) VsockCheck(ctx context.Context) (api.VsockCheckReply, error) {
	return call(ctx, c, api.VsockCheck, api.VsockCheckRequest{})
}

// Settle waits until everything that the guest does at its boot is done, it has found the disks with the serials, and with
// rest until it is at rest, for that some seconds at most. Where a part of that went wrong, the error says so.
func (c *Client) Settle(ctx context.Context, rest bool, disks ...string) error {
	_, err := call(ctx, c, api.Settle, api.SettleRequest{Disks: disks, Rest: rest})
	return err
}

// LeaveDisk has the guest let its data disk go, so that it can be configured anew. While there are containers it is
// ErrConflict.
func (c *Client) LeaveDisk(ctx context.Context) error {
	_, err := call(ctx, c, api.LeaveDisk, api.LeaveDiskRequest{})
	return err
}

// Wake gives a guest that goes on from a template randomness and a time of its own.
func (c *Client) Wake(ctx context.Context, req api.WakeRequest) error {
	_, err := call(ctx, c, api.Wake, req)
	return err
}

// Poweroff asks the guest to power off: containers are killed and file systems unmounted. It returns when that is done
// and the power is about to go. A second call may find the agent gone.
func (c *Client) Poweroff(ctx context.Context) error {
	_, err := call(ctx, c, api.Poweroff, api.PoweroffRequest{})
	return err
}

// Create makes a container. It waits for the disks of its layers until ctx ends. An id that is taken is ErrExists, a
// request that cannot be honoured ErrInvalid, a layer that is not a file system ErrCorrupt. After an error there is no
// container; where it is that of ctx, there is none soon, which Remove waits for.
func (c *Client) Create(ctx context.Context, req api.CreateRequest) error {
	_, err := call(ctx, c, api.Create, req)
	return err
}

// Start starts the process of a created container. A command that does not exist is ErrNoCommand, one that cannot be
// executed ErrNoExecutable; the container has exited then, with 127 or 126. One that was started before is ErrConflict.
// Where ctx ends before the command was executed, the container is killed.
func (c *Client) Start(ctx context.Context, req api.StartRequest) (api.StartReply, error) {
	return call(ctx, c, api.Start, req)
}

// Wait waits for the end of a container's process, at once where it has ended. Any number may wait.
func (c *Client) Wait(ctx context.Context, req api.WaitRequest) (api.WaitReply, error) {
	return call(ctx, c, api.Wait, req)
}

// Kill sends a signal to the process of a container. A container that does not run is ErrConflict, an unknown signal
// ErrInvalid.
func (c *Client) Kill(ctx context.Context, req api.KillRequest) error {
	_, err := call(ctx, c, api.Kill, req)
	return err
}

// Remove removes a container and what it wrote, or keeps that for a later Create of the same ID. What a container wrote
// that is known by that only is removed too. One that runs is ErrConflict unless the request forces it; a second call is
// ErrNotFound.
func (c *Client) Remove(ctx context.Context, req api.RemoveRequest) error {
	_, err := call(ctx, c, api.Remove, req)
	return err
}

// Events subscribes to what happens in the guest from now on. The channel is closed when ctx or the connection to the
// agent ends; read it until then. A reader that is too slow finds one event of kind EventLost in place of what it lost.
func (c *Client) Events(ctx context.Context) (<-chan api.Event, error) {
	s, err := open(ctx, c, api.Events, api.EventsRequest{})
	if err != nil {
		return nil, err
	}
	events := make(chan api.Event)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	go func() {
		defer close(events)
		defer s.Close()
		defer stop()
		for {
			e, err := recvEvent(s)
			if err != nil {
				return
			}
			if host, ok := c.host[e.ID]; ok {
				e.ID = host
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

// call makes a call after the version was checked.
func call[Req, Rep any](ctx context.Context, c *Client, m api.Method[Req, Rep], req Req) (Rep, error) {
	if err := c.check(ctx); err != nil {
		var rep Rep
		return rep, fmt.Errorf("%s: %w", m.Name, err)
	}
	c.alias(&req)
	return api.Call(ctx, c.dial, m, req)
}

// open opens a stream after the version was checked.
func open[Req any](ctx context.Context, c *Client, m api.StreamMethod[Req], req Req) (*api.Stream, error) {
	if err := c.check(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	c.alias(&req)
	return api.Open(ctx, c.dial, m, req)
}

func (c *Client) check(ctx context.Context) error {
	if c.same.Load() {
		return nil
	}
	_, err := c.Ping(ctx)
	return err
}
