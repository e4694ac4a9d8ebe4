package arcboxtest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// module is in the name of every function of arcbox.
const module = "github.com/arcboxlabs/arcbox-go"

// leakGrace is how long is waited for what is about to end.
const leakGrace = 3 * time.Second

// Main runs the tests of a package, as m.Run does, and then looks for what they have left behind: goroutines of arcbox, and
// machines. It returns the exit code, which is not 0 where there is something; what it is, is printed to stderr.
func Main(m interface{ Run() int }) int {
	code := m.Run()
	if left := Leaks(); len(left) > 0 {
		fmt.Fprintf(stderr(), "arcboxtest: the tests have left behind:\n\t%s\n", strings.Join(left, "\n\t"))
		return max(code, 1)
	}
	return code
}

// stderr is where test programs write what is of no single test.
func stderr() *os.File { return os.NewFile(2, "stderr") }

// Leaks returns what there is of arcbox in this process: goroutines that run its code, and child processes that are its
// machines (on Linux). It waits a little for those that are about to end. While a Runtime is open there are some.
func Leaks() []string {
	deadline := time.Now().Add(leakGrace)
	for wait := time.Millisecond; ; wait *= 2 {
		left := append(goroutines(), machines()...)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-time.After(wait)
	}
}

// goroutines returns those that are in code of arcbox, but for that of this package, which asks.
func goroutines() (left []string) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for _, g := range strings.Split(string(buf), "\n\n")[1:] { // the first is this one
		if strings.Contains(g, module) && !strings.Contains(g, "testing.(*T).Run") && !strings.Contains(g, "testing.tRunner") {
			left = append(left, strings.ReplaceAll(g, "\n", "\n\t\t"))
		}
	}
	return left
}

// machines returns the child processes that are machines.
func machines() (left []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // there are none on other systems
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest) // state, parent, ...
		if len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(stat), "cmdline"))
		if args := strings.Split(string(cmd), "\x00"); len(args) > 2 && strings.HasPrefix(args[2], "guest=") {
			left = append(left, "process "+filepath.Base(filepath.Dir(stat))+": "+strings.Join(args, " "))
		}
	}
	return left
}
