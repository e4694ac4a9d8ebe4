// Package errs holds the sentinel errors of arcbox. They are defined here once, used by every package on both sides of
// the VM boundary, and re-exported by the root package, which is where users find them.
package errs

import "errors"

// The sentinels. Each has a code that travels between guest and host, so errors.Is gives the same answer on both sides.
var (
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("already exists")
	ErrConflict     = errors.New("conflict")
	ErrInvalid      = errors.New("invalid")
	ErrInUse        = errors.New("in use")
	ErrUnavailable  = errors.New("unavailable")
	ErrClosed       = errors.New("closed")
	ErrCorrupt      = errors.New("corrupt")
	ErrUnsupported  = errors.ErrUnsupported
	ErrNoCommand    = errors.New("command not found")
	ErrNoExecutable = errors.New("command not executable")
)

var codes = []struct {
	code string
	err  error
}{
	// The order is that of precedence: an error that wraps two sentinels crosses the VM as the first of this list.
	{"no_command", ErrNoCommand},
	{"no_executable", ErrNoExecutable},
	{"not_found", ErrNotFound},
	{"exists", ErrExists},
	{"conflict", ErrConflict},
	{"invalid", ErrInvalid},
	{"in_use", ErrInUse},
	{"closed", ErrClosed},
	{"corrupt", ErrCorrupt},
	{"unsupported", ErrUnsupported},
	{"unavailable", ErrUnavailable},
}

// Code returns the wire code of the sentinel that err wraps, or "" where it wraps none.
func Code(err error) string {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return ""
}

// Remote is an error that happened on the other side of the VM boundary.
type Remote struct {
	Code    string `json:"code,omitempty"` // of the sentinel it wraps, "" for none
	Message string `json:"message"`
}

// Error returns the message as the other side wrote it.
func (r *Remote) Error() string { return r.Message }

// Unwrap returns the sentinel of the code, or nil for an unknown one.
func (r *Remote) Unwrap() error {
	for _, c := range codes {
		if c.code == r.Code {
			return c.err
		}
	}
	return nil
}

// ToRemote turns err into the form that crosses the VM boundary.
func ToRemote(err error) *Remote {
	return &Remote{Code: Code(err), Message: err.Error()}
}
