package vz

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// Entitlement is the entitlement that a program needs to start machines.
const Entitlement = "com.apple.security.virtualization"

// Entitlements is the property list with which a program is signed: it has Entitlement and no other.
//
//go:embed arcbox.entitlements
var Entitlements string

// EntitlementError says that macOS does not let the program start machines, since it is not signed with Entitlement. It
// wraps ErrUnavailable.
type EntitlementError struct {
	Program string // path of the program that is not signed; "" is unknown
}

// Error says how to sign the program.
func (e *EntitlementError) Error() string {
	program := e.Program
	if program == "" {
		program = "PROGRAM"
	}
	return fmt.Sprintf("%s does not have the entitlement %s: %s", program, Entitlement, e.Fix())
}

// Fix says what to do, as a sentence with commands.
func (e *EntitlementError) Fix() string {
	program := e.Program
	if program == "" {
		program = "PROGRAM"
	}
	return fmt.Sprintf("sign it with: go run github.com/arcboxlabs/arcbox-go/vm/vz/sign '%s'; "+
		"for tests: go test -exec 'go run github.com/arcboxlabs/arcbox-go/vm/vz/sign -run'", strings.ReplaceAll(program, "'", `'\''`))
}

// Unwrap returns ErrUnavailable.
func (e *EntitlementError) Unwrap() error { return errs.ErrUnavailable }

// failure is an error of the framework.
type failure struct {
	domain string
	code   int
	text   string // for people to read
}

// Error returns the text.
func (f *failure) Error() string { return fmt.Sprintf("%s (%s %d)", f.text, f.domain, f.code) }

// domain is that of the framework's own errors.
const domain = "VZErrorDomain"

// The framework's errors that mean more than that it did not work, from its headers.
const (
	codeConfiguration   = 2
	codeState           = 3
	codeStateTransition = 4
	codeDiskImage       = 5
	codeNotSupported    = 10
)

// explain wraps an error of the framework in the sentinel that says what it means. Other errors stay as they are.
func explain(err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	kind := errs.ErrUnavailable
	if f.domain == domain {
		switch f.code {
		case codeConfiguration:
			// The framework has no code of its own for this. The name in the text is no text: it is the entitlement's.
			if strings.Contains(f.text, Entitlement) {
				program, _ := os.Executable() // "" where it is not known
				return &EntitlementError{Program: program}
			}
			kind = errs.ErrInvalid
		case codeState, codeStateTransition:
			kind = errs.ErrConflict
		case codeDiskImage:
			kind = errs.ErrInvalid
		case codeNotSupported:
			kind = errs.ErrUnsupported
		}
	}
	return fmt.Errorf("%w: %w", kind, err)
}
