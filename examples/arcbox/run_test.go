//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/internal/image/imagetest"
	"github.com/arcboxlabs/arcbox-go/internal/needs"
)

// asCommand as the first argument makes the test binary the command itself.
const asCommand = "arcbox-under-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asCommand {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		main()
	}
	os.Exit(m.Run())
}

// host is a data directory with busybox:test, and kernels that outlive the test.
type host struct {
	t       *testing.T
	dataDir string
	bootDir string
}

func newHost(t *testing.T) *host {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	h := &host{t: t, dataDir: t.TempDir(), bootDir: filepath.Join(cache, "arcbox-test", "boot")}
	img, err := imagetest.Busybox(t)
	needs.Machine(t, err)
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	require.NoError(t, os.WriteFile(archive, imagetest.OCIArchive(t, img), 0o600))
	out, err := h.command("load", archive).Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "loaded docker.io/library/busybox:test ")
	return h
}

func (h *host) command(args ...string) *exec.Cmd {
	all := append([]string{asCommand, "--data-dir", h.dataDir, "--boot-dir", h.bootDir, "--memory", "384"}, args...)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	h.t.Cleanup(cancel)
	return exec.CommandContext(ctx, os.Args[0], all...)
}

// testTimeout is far above what anything takes on a slow and busy machine. The command is killed then, and its machine
// with it.
const testTimeout = 3 * time.Minute

// run runs a command line to its end.
func (h *host) run(stdin string, args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	cmd := h.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	require.NotNil(h.t, cmd.ProcessState, err)
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// needsMachine skips a test where this host has no machine, and none was asked for.
func needsMachine(t *testing.T) {
	t.Helper()
	needs.Program(t, map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH])
}

func TestRun(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	code, stdout, stderr := h.run("", "images")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "docker.io/library/busybox:test")

	code, stdout, stderr = h.run("to stdin", "run", "-i", "--rm", "--name", "x", "-e", "A=b", "-w", "/tmp", "-u", "12:34", "--hostname", "here",
		"busybox:test", "sh", "-c", `echo $A $(pwd) $(id -u):$(id -g) $(hostname); cat; echo to stderr >&2; exit 42`)
	require.Equal(t, 42, code, stderr)
	require.Equal(t, "b /tmp 12:34 here\nto stdin", stdout)
	require.Contains(t, stderr, "to stderr\n")
	require.Contains(t, stderr, "boot machine: done in ", "plain lines tell of the progress")

	code, stdout, stderr = h.run("", "-q", "run", "busybox:test", "no-such-command")
	require.Equal(t, exitNoCommand, code, stderr)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "no-such-command")
	require.NotContains(t, stderr, "boot machine")

	code, _, stderr = h.run("", "run", "busybox:test", "/etc")
	require.Equal(t, exitNotRunnable, code, stderr)
}

// A signal to the command is the container's.
func TestSignalsReachTheContainer(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	cmd := h.command("run", "busybox:test", "sh", "-c", `trap 'echo got TERM; exit 9' TERM; echo ready; while :; do sleep 1; done`)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	require.NoError(t, err, &stderr)
	require.Equal(t, "ready\n", line)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "got TERM\n", string(rest))
	_ = cmd.Wait()
	require.Equal(t, 9, cmd.ProcessState.ExitCode(), &stderr)
}

// A container that does not listen is killed by the third interrupt.
func TestThirdInterruptKills(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	cmd := h.command("run", "busybox:test", "sh", "-c", `trap 'echo no' INT; echo ready; while :; do sleep 1; done`)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r := bufio.NewReader(out)
	for _, want := range []string{"ready\n", "no\n", "no\n"} {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, line)
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	}
	_, err = io.ReadAll(r)
	require.NoError(t, err)
	_ = cmd.Wait()
	require.Equal(t, 137, cmd.ProcessState.ExitCode())
}

// An interrupt while the machine boots ends the command, and the machine.
func TestInterruptDuringBoot(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	cmd := h.command("run", "busybox:test", "true")
	errs, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r := bufio.NewReader(errs)
	for line := ""; !strings.HasPrefix(line, "boot machine"); {
		line, err = r.ReadString('\n')
		require.NoError(t, err)
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	rest, err := io.ReadAll(r) // ends when the machine has let go of stderr, too
	require.NoError(t, err)
	_ = cmd.Wait()
	require.Equal(t, exitSignal+2, cmd.ProcessState.ExitCode(), string(rest))
}

// terminal is the command on a terminal.
type terminal struct {
	t    *testing.T
	file *os.File
	seen strings.Builder
}

// until reads until the terminal shows text.
func (m *terminal) until(text string) {
	m.t.Helper()
	buf := make([]byte, 1024)
	for !strings.Contains(m.seen.String(), text) {
		n, err := m.file.Read(buf)
		m.seen.Write(buf[:n])
		if err != nil {
			require.Contains(m.t, m.seen.String(), text, err)
		}
	}
}

func (m *terminal) typeText(text string) {
	m.t.Helper()
	_, err := m.file.WriteString(text)
	require.NoError(m.t, err)
}

func TestTerminal(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	cmd := h.command("run", "-it", "--rm", "busybox:test", "sh")
	file, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	require.NoError(t, err)
	defer file.Close()
	m := &terminal{t: t, file: file}
	m.until("# ")
	require.Contains(t, m.seen.String(), "boot machine", "the terminal shows progress")
	m.typeText("stty size; tty\n")
	m.until("33 101")
	m.until("/dev/pts/")
	require.NoError(t, pty.Setsize(file, &pty.Winsize{Rows: 44, Cols: 77}))
	m.typeText("while [ \"$(stty size)\" != '44 77' ]; do sleep 0.1; done; echo resi''zed\n")
	m.until("resized")
	m.typeText("sh -c 'echo wait''ing; exec sleep 1000'\n")
	m.until("waiting")
	m.typeText("\x03") // reaches the shell's child, not the command
	m.until("^C")
	m.typeText("echo still $((40+2))\n") // and the shell goes on
	m.until("still 42")
	m.typeText("exit 5\n")
	_, _ = io.Copy(&m.seen, file) // a terminal whose other side is gone reads as an error
	_ = cmd.Wait()
	require.Equal(t, 5, cmd.ProcessState.ExitCode(), m.seen.String())
}
