package arcbox

import (
	"errors"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// The errors that callers tell apart with errors.Is. They keep their identity across the VM boundary.
var (
	ErrNotFound    = errs.ErrNotFound    // no container, image or machine goes by the reference
	ErrExists      = errs.ErrExists      // the name is taken
	ErrConflict    = errs.ErrConflict    // the state of the thing does not allow it
	ErrInvalid     = errs.ErrInvalid     // a value that the caller gave is wrong
	ErrInUse       = errs.ErrInUse       // something else needs the thing
	ErrUnavailable = errs.ErrUnavailable // what the call needs is not there now: QEMU, the machine, a registry
	ErrClosed      = errs.ErrClosed      // the Runtime was closed
	ErrUnsupported = errs.ErrUnsupported // not possible on this system; the same as errors.ErrUnsupported
	ErrCorrupt     = errs.ErrCorrupt     // data does not have the digest or the form it should have

	// ErrCommandNotFound means that a container's command does not exist in its image. The container has exited with
	// 127.
	ErrCommandNotFound = errs.ErrNoCommand
	// ErrCommandNotExecutable means that a container's command exists and cannot be executed. The container has exited
	// with 126.
	ErrCommandNotExecutable = errs.ErrNoExecutable
)

// Error is the type of every error that the methods of Runtime return.
type Error struct {
	Op  string // the method, for example "CreateContainer"
	Ref string // what it was called on: a name, id or reference; "" where there is none
	Err error  // what went wrong; it wraps one of the sentinels where one fits
}

// Error returns "Op Ref: Err".
func (e *Error) Error() string {
	s := e.Op
	if e.Ref != "" {
		s += " " + e.Ref
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// opError is the one gate through which errors leave the package. It returns nil for nil.
func opError(op, ref string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err // it came from another method of Runtime
	}
	return &Error{Op: op, Ref: ref, Err: err}
}
