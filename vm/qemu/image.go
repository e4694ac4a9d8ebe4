package qemu

import (
	"cmp"
	"context"
	_ "embed" // the filter of system calls
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/checkpoint"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
	"github.com/arcboxlabs/arcbox-go/vm"
)

// An image of QEMU is the process itself, saved when the machine was, with all guest code that it has translated. A QEMU that goes on
// from it need not load its libraries, make the machine, restore the devices, and translate anew, which is nearly all
// that an emulated machine does in its first second. It is in a file beside the state, which is there all the same: for hosts
// that do not let a process be saved, after the host was started anew, and for machines with disks in other places than bays.

// imageSuffix is what the name of the image has after that of the state.
const imageSuffix = ".qemu"

// sandbox is the filter of system calls for a QEMU that goes on from an image: Docker's form of what an emulator needs that
// has its sockets. It ends one that wants to execute a program, or to become somebody else.
//
//go:embed sandbox.json
var sandbox []byte

// settleTime bounds the wait for a QEMU whose machine was paused to be at rest.
const settleTime = 5 * time.Second

// saveImage saves QEMU, whose machine is paused.
func (i *Instance) saveImage(ctx context.Context, path string) error {
	i.mu.Lock()
	disks := len(i.disks)
	i.mu.Unlock()
	why := ""
	switch {
	case disks > 0 || i.cid != 0:
		why = "it has disks or a virtio socket"
	case i.spec.ReturnMemory:
		why = "memory that is given back would come again"
	case i.spec.Arch != "amd64":
		why = "the random numbers of its processors come from what would be saved" // others can do without the instruction for them
	case !i.proc.traceable:
		why = "this kernel has no pidfd"
	}
	if why != "" {
		return fmt.Errorf("save QEMU: %w: %s", errs.ErrUnsupported, why)
	}
	filter, err := seccomp.Compile(runtime.GOARCH, nil, sandbox)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	return checkpoint.Save(ctx, i.proc.pid(), path, checkpoint.Spec{Given: firstFD + len(i.socks.theirs), Memory: i.spec.MemoryFile, Filter: filter})
}

// A QEMU that goes on from its image answers in some 10 ms: one that does not for resumeLimit is not waited for. It is tried
// resumeTries times where the kernel has put something in its place, which happens to one start in some hundred.
const (
	resumeLimit = 10 * time.Second
	resumeTries = 4
)

// resume starts a machine whose state has an image of QEMU. It returns nil, without an error, where that cannot be; the
// error is that of a ctx that has ended meanwhile.
func (d *Driver) resume(ctx context.Context, log *slog.Logger, c command) (vm.Instance, error) {
	if c.spec.State == "" || c.spec.OwnMemory {
		return nil, nil
	}
	image := c.spec.State + imageSuffix
	err := checkpoint.Check(image)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var exit *exec.ExitError
	for try := 0; err == nil || try < resumeTries && errors.As(err, &exit) && exit.ExitCode() == checkpoint.Collision; try++ {
		var inst *Instance
		if inst, err = d.resumeFrom(ctx, log, image, c); err == nil {
			return inst, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("start machine %s: %w", c.spec.Name, err)
		}
	}
	log.Info("QEMU starts anew: its image does not serve", "reason", err)
	return nil, nil
}

// resumeFrom starts a machine from an image of QEMU.
func (d *Driver) resumeFrom(ctx context.Context, log *slog.Logger, image string, c command) (*Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, d.resumeLimit)
	defer cancel()
	program, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	l := launch{path: image, c: c, image: image}
	var memory *os.File
	if c.spec.Forkable {
		memory, err = ownMemory(ctx, c.spec)
		l.memory = memory
	} else if memory, err = os.Open(c.spec.MemoryFile); err == nil {
		defer memory.Close()
	}
	if err != nil {
		return nil, err
	}
	l.args = checkpoint.Args(c.spec.Name, checkpoint.Mode{Shared: l.memory != nil, Eager: c.spec.Eager})
	if l.socks, err = newSockets(c.spec.NIC); err != nil {
		if l.memory != nil {
			l.memory.Close()
		}
		return nil, err
	}
	defer l.socks.closeTheirs()
	l.files = append(slices.Clip(l.socks.theirs), program, memory)
	return d.launch(ctx, log, l)
}

// goOn gives a machine that QEMU has in its image its disks, and lets it go on.
func (i *Instance) goOn(ctx context.Context, disks []vm.Disk) error {
	i.portOpened() // as it was when the machine was saved
	for _, d := range disks {
		if err := i.fill(d); err != nil {
			return err
		}
	}
	return i.Resume(ctx)
}

// learned is what Learn has found of the memory that machines use, by whether they are eager.
type learned [2]atomic.Pointer[checkpoint.Used]

func (l *learned) of(eager bool) *atomic.Pointer[checkpoint.Used] {
	if eager {
		return &l[1]
	}
	return &l[0]
}

// Learn notes what memory the machine has used since it went on, for those that go on later. See vm.Learner.
func (i *Instance) Learn(_ context.Context, eager bool) error {
	if i.image == "" {
		return fmt.Errorf("learn from machine %s: %w: it has not gone on from an image", i.life.Name, errs.ErrUnsupported)
	}
	used, err := checkpoint.Look(i.proc.pid())
	if err != nil {
		return fmt.Errorf("learn from machine %s: %w", i.life.Name, err)
	}
	i.learned.of(eager).Store(&used)
	return nil
}

// noteLearned writes down what Learn has found. It can do so when QEMU has ended: nobody writes to a program that runs.
func (i *Instance) noteLearned() {
	lazy, eager := i.learned.of(false).Load(), i.learned.of(true).Load()
	if lazy == nil && eager == nil {
		return
	}
	none := &checkpoint.Used{}
	if err := checkpoint.Preload(i.image, *cmp.Or(lazy, none), *cmp.Or(eager, none)); err != nil {
		i.log.Warn("machines will go on without what this one has learned", "err", err)
	}
}

// DropImage removes the image of QEMU beside a state. See vm.Imager.
func (d *Driver) DropImage(state string) error {
	err := os.Remove(state + imageSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image of QEMU beside %s: %w", state, errs.ErrNotFound)
	}
	return err
}

// Stale tells whether the image of QEMU beside a state cannot be used any more. See vm.Imager.
func (d *Driver) Stale(state string) bool {
	return errors.Is(checkpoint.Check(state+imageSuffix), errs.ErrUnsupported)
}
