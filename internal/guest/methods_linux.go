package guest

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/box"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

// methods returns what the host can call.
func (a *agent) methods() *api.Mux {
	m := &api.Mux{}
	a.engine.Register(m)
	api.Handle(m, api.Ping, a.ping)
	api.Handle(m, api.Configure, a.configure)
	api.Handle(m, api.VsockCheck, a.vsock.check)
	api.Handle(m, api.Settle, func(ctx context.Context, req api.SettleRequest) (api.SettleReply, error) {
		learn(m)
		return a.settle(ctx, req)
	})
	api.Handle(m, api.LeaveDisk, a.leaveDisk)
	api.Handle(m, api.Census, a.census)
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

// maxClockError is how far the guest's clock may be from the host's before it is set.
const maxClockError = time.Second

// configure takes what is the machine's own. It does not wait for the data disk.
func (a *agent) configure(_ context.Context, req api.ConfigureRequest) (api.ConfigureReply, error) {
	if h := req.Hostname; h != "" {
		if err := engine.CheckID(h); err != nil || len(h) > maxHostname {
			return api.ConfigureReply{}, fmt.Errorf("configure: host name %.80q: %w", h, errs.ErrInvalid)
		}
		if err := unix.Sethostname([]byte(h)); err != nil {
			return api.ConfigureReply{}, fmt.Errorf("set host name: %w", err)
		}
	}
	if d := time.Since(req.Time); !req.Time.IsZero() && d.Abs() > maxClockError {
		ts := unix.NsecToTimespec(req.Time.UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return api.ConfigureReply{}, fmt.Errorf("set clock: %w", err)
		}
	}
	if req.DataDisk == "" {
		return api.ConfigureReply{}, nil
	}
	var sweep *box.Known
	if req.Sweep {
		sweep = &box.Known{Containers: req.Known, Volumes: req.Volumes}
	}
	return api.ConfigureReply{}, a.box.UseDisk(req.DataDisk, req.DiskLater, sweep)
}

// leaveDisk lets the data disk go.
func (a *agent) leaveDisk(context.Context, api.LeaveDiskRequest) (api.LeaveDiskReply, error) {
	if !a.engine.Idle() {
		return api.LeaveDiskReply{}, fmt.Errorf("leave the data disk: %w: there are containers: remove them", errs.ErrConflict)
	}
	return api.LeaveDiskReply{}, a.box.LeaveDisk()
}

// maxHostname is the longest host name that Linux takes.
const maxHostname = 64

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
	if err := a.box.Close(); err != nil {
		a.complain(fmt.Errorf("power off: %w", err))
	}
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
