// Command sign signs a program with the entitlement that macOS wants of programs which start virtual machines, and runs
// it if asked to:
//
//	go run github.com/arcboxlabs/arcbox-go/vm/vz/sign PROGRAM
//	go test -exec 'go run github.com/arcboxlabs/arcbox-go/vm/vz/sign -run' ./...
//
// The signature is an ad hoc one, which needs no certificate and is good for this machine. For programs that are shipped,
// sign with a certificate and the same entitlement: codesign's options are -identity and, for Apple's notary, -hardened.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/arcboxlabs/arcbox-go/vm/vz"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "sign:", err)
	}
	os.Exit(code)
}

// options are what the command line says.
type options struct {
	run      bool
	codesign string
	identity string
	hardened bool
	program  string
	args     []string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("sign", flag.ContinueOnError)
	fs.BoolVar(&o.run, "run", false, "run the program after it was signed, with the arguments after it")
	fs.StringVar(&o.codesign, "codesign", "codesign", "the program that signs")
	fs.StringVar(&o.identity, "identity", "-", "the certificate to sign with; - is none")
	fs.BoolVar(&o.hardened, "hardened", false, "sign for the hardened runtime")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() == 0 || !o.run && fs.NArg() > 1 {
		return o, fmt.Errorf("usage: sign [-run] PROGRAM [ARGUMENTS...]")
	}
	o.program, o.args = fs.Arg(0), fs.Args()[1:]
	return o, nil
}

// run signs the program and, where it is asked to, becomes it. It returns the exit code.
func run(args []string) (int, error) {
	o, err := parse(args)
	if err != nil {
		return 2, err
	}
	if o.program, err = exec.LookPath(o.program); err != nil {
		return 1, err
	}
	if err := o.sign(); err != nil {
		return 1, err
	}
	if !o.run {
		return 0, nil
	}
	return become(o.program, o.args)
}

// sign signs the program in place.
func (o options) sign() error {
	dir, err := os.MkdirTemp("", "arcbox-sign")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "arcbox.entitlements")
	if err := os.WriteFile(file, []byte(vz.Entitlements), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command(o.codesign, o.arguments(file)...).CombinedOutput(); err != nil {
		return fmt.Errorf("sign %s: %w: %s", o.program, err, out)
	}
	return nil
}

// arguments are those of codesign.
func (o options) arguments(entitlements string) []string {
	a := []string{"--force", "--sign", o.identity, "--entitlements", entitlements}
	if o.hardened {
		a = append(a, "--options", "runtime", "--timestamp")
	}
	return append(a, o.program)
}
