package guest

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
)

// methods returns what the host can call.
func (a *agent) methods() *api.Mux {
	m := &api.Mux{}
	a.engine.Register(m)
	api.Handle(m, api.Ping, a.ping)
	api.Handle(m, api.VsockCheck, a.vsock.check)
	api.Handle(m, api.Settle, a.settle)
	api.Handle(m, api.Wake, wake)
	api.HandleThen(m, api.Poweroff, a.prepareOff, a.off)
	a.vsock.ping = a.ping
	return m
}

func (a *agent) ping(context.Context, api.PingRequest) (api.PingReply, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return api.PingReply{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return api.PingReply{
		Version: api.Version,
		Kernel:  unix.ByteSliceToString(u.Release[:]),
		Uptime:  uptime(),
		Vsock:   a.vsock.listening(),
		Phases:  a.phases.get(),
	}, nil
}

// How long the steps of a power-off may take.
const (
	removeTime = 10 * time.Second // for all containers
	replyTime  = time.Second      // for the host to take the reply
)

// prepareOff ends everything. It goes on when the host does not wait for it.
func (a *agent) prepareOff(ctx context.Context, _ api.PoweroffRequest) (api.PoweroffReply, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	if err := a.engine.Close(ctx); err != nil {
		a.complain(fmt.Errorf("power off: %w", err)) // the power goes all the same
	}
	a.box.Close()
	unix.Sync()
	return api.PoweroffReply{}, nil
}

// off takes the power away when the host has the reply.
func (a *agent) off(ctx context.Context) {
	timer := time.NewTimer(replyTime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		a.failed <- fmt.Errorf("power off: %w", err) // ends the machine too
	}
}
