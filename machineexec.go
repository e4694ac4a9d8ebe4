package arcbox

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/internal/container"
)

// MachineExecSpec describes a process to run in a machine itself. Image and Args are required.
type MachineExecSpec struct {
	// Image has the programs, since the machine has none but the agent: the process sees the image's root as its own, where
	// what it writes is gone with it, and the machine's below /host.
	Image      string
	Args       []string // the command and its arguments; the command is looked up in the image's PATH
	Env        []string // KEY=value over the image's; KEY alone removes
	WorkingDir string   // absolute; "" is "/"
	User       string   // user[:group] of the image; "" is root
	TTY        bool     // give the process a terminal
}

// ExecMachine executes a command in a machine itself, to look at it or to change it: as root with all rights, in the
// machine's own namespaces of processes, network, IPC and host name, with all its devices. It starts the machine where it
// does not run and returns when the command has been executed: ctx bounds that only. Until the process has ended it keeps
// the machine running. What it mounts, and processes that it leaves behind, end with it. The machine itself has no address
// in any network: containers have.
//
// The image is fetched as by CreateContainer. The errors are those of Exec; a missing image is ErrNotFound. InspectExec and
// ResizeExec do not know the process.
func (r *Runtime) ExecMachine(ctx context.Context, name string, spec MachineExecSpec, opts RunOptions) (*Process, error) {
	return call(ctx, r, "ExecMachine", name, func(ctx context.Context) (*Process, error) {
		if spec.Image == "" {
			return nil, fmt.Errorf("%w Image %q: name one that has the command: a machine has no programs of its own", ErrInvalid, spec.Image)
		}
		if _, err := r.machines.Inspect(name); err != nil { // before anything is fetched
			return nil, err
		}
		if err := r.ensureImage(ctx, spec.Image, opts.Pull, opts.PullProgress); err != nil {
			return nil, err
		}
		if err := r.checkPlatform(ctx, spec.Image); err != nil {
			return nil, err
		}
		x, err := r.containers.ExecMachine(ctx, name, spec.Image, container.ExecSpec{
			Args: spec.Args, Env: spec.Env, WorkingDir: spec.WorkingDir, User: spec.User,
			TTY: spec.TTY, Stdin: opts.Stdin != nil, Rows: opts.Rows, Cols: opts.Cols,
		}, opts.Stdout, opts.Stderr)
		if err != nil {
			return nil, err
		}
		return r.process(x, opts.Stdin), nil
	})
}
