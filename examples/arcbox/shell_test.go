//go:build linux

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                           nil,
		"  \t":                       nil,
		"# all of it":                nil,
		"a b\tc # rest":              {"a", "b", "c"},
		"a#b '#' \\#":                {"a#b", "#", "#"},
		`'a b'c "d e" '' ""`:         {"a bc", "d e", "", ""},
		`"a\"b\\c\d\$e" 'f\' g\ h`:   {`a"b\c\d$e`, `f\`, "g h"},
		`sh -c 'echo "x y"; exit 3'`: {"sh", "-c", `echo "x y"; exit 3`},
		"\u00fc \u00e9\u00e8":        {"\u00fc", "\u00e9\u00e8"},
	} {
		got, err := words(line)
		require.NoError(t, err, line)
		require.Equal(t, want, got, line)
	}
	for _, line := range []string{`'a`, `"a`, `a\`, `"a\`} {
		_, err := words(line)
		require.Error(t, err, line)
	}
}

func FuzzWords(f *testing.F) {
	f.Add(`run -d 'a b' "c\"" \# # x`)
	f.Fuzz(func(t *testing.T, line string) {
		list, err := words(line)
		if err != nil {
			return
		}
		quoted := make([]string, len(list))
		for i, w := range list {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		again, err := words(strings.Join(quoted, " "))
		require.NoError(t, err)
		require.Equal(t, list, again)
	})
}

func TestConsoleLines(t *testing.T) {
	text := "one\r\n\n" + strings.Repeat("x", maxLine+1) + "\nlast"
	for _, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
		c := newConsole(r)
		for _, want := range []string{"one", ""} {
			line, err := c.line(nil)
			require.NoError(t, err)
			require.Equal(t, want, line)
		}
		_, err := c.line(nil)
		require.ErrorIs(t, err, errLineTooLong)
		line, err := c.line(nil)
		require.NoError(t, err)
		require.Equal(t, "last", line)
		_, err = c.line(nil)
		require.ErrorIs(t, err, io.EOF)
	}
}

// What comes after a process has given the console back is the shell's.
func TestConsoleLease(t *testing.T) {
	r, w := io.Pipe()
	c := newConsole(r)
	l := c.lease()
	go w.Write([]byte("to the process"))
	buf := make([]byte, 6)
	n, err := l.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "to the", string(buf[:n]))
	_, err = io.ReadFull(l, make([]byte, 8))
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		_, err := l.Read(buf)
		ended <- err
	}()
	l.close()
	require.Equal(t, io.EOF, <-ended)
	go w.Write([]byte("to the shell\n"))
	line, err := c.line(nil)
	require.NoError(t, err)
	require.Equal(t, "to the shell", line)
	w.Close()
	_, err = c.lease().Read(buf)
	require.Equal(t, io.EOF, err)
}

func TestDetachReader(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		detached bool
	}{
		{"abc", "abc", false},
		{"ab\x10\x11c", "ab", true},
		{"\x10a\x10\x10\x11b", "\x10a\x10", true},
		{"\x10a\x11", "\x10a\x11", false},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
			detached := false
			got, err := io.ReadAll(&detachReader{r: r, detach: func() { detached = true }})
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got), "%q", tt.in)
			require.Equal(t, tt.detached, detached)
		}
	}
}

// shell runs a script and returns what it printed.
func (h *host) shell(script ...string) (code int, stdout, stderr string) {
	return h.run(strings.Join(script, "\n"), "-q", "shell")
}

func TestShell(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	sock := filepath.Join(t.TempDir(), "sock")
	code, stdout, stderr := h.shell(
		"# a web server, in a way",
		`run -d --name web -p 80 -p 53/udp -p "`+sock+`:/run/s" -l tier=front -m 64m busybox:test sh -c 'trap "exit 7" TERM; echo ready; echo oops >&2; while :; do sleep 0.1; done'`,
		"ps --filter label=tier=front", "port web 80", "port web", "port web 53/udp", "port web 81", "inspect web",
		`exec -e A=b web sh -c 'echo "in $A"; exit 3'`,
		"run -d --name other busybox:test sleep 1000", "stats --no-stream --interval 50ms web other", "stats --no-stream --interval 50ms", "rm -f other",
		"exec -i web cat", // takes the rest of the input where it is not told to end
	)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "web    busybox:test   running")
	require.Contains(t, stdout, "in b\n")
	require.Regexp(t, `running   \d+ seconds ago +127\.0\.0\.1:\d+->80/tcp, 127\.0\.0\.1:\d+->53/udp, `+sock+`->/run/s\n127\.0\.0\.1:\d+\n127\.0\.0\.1:\d+->80/tcp\n`, stdout)
	require.Contains(t, stdout, `"ContainerPort": 80,`)
	require.Contains(t, stderr, "does not publish port 81/tcp")
	require.Equal(t, 2, strings.Count(stdout, "\nother "), stdout)
	require.Equal(t, 2, strings.Count(stdout, "MEMORY / LIMIT"), stdout)

	code, stdout, stderr = h.shell(
		"rename web old", "start old", "logs old",
		// A process 1 that has no handler for a signal yet does not get it.
		`exec old sh -c 'until grep -q "^SigCgt.*4...$" /proc/1/status; do sleep 0.05; done; echo hello'`, "stop old", "wait old", "logs old",
		"nonsense", "exec old true", "rm old", "ps -a", "exit 5", "never reached",
	)
	require.Equal(t, 5, code, stderr)
	require.Contains(t, stdout, "hello\n")
	require.Contains(t, stdout, "\n7\n", "the exit code")
	require.Contains(t, stdout, "ready\n")
	require.Contains(t, stderr, "oops\n")
	require.Contains(t, stderr, "nonsense")
	require.Contains(t, stderr, "exited")
	require.True(t, strings.HasSuffix(stdout, "ID   NAME   IMAGE   STATE   CREATED   PORTS\n"), stdout)
}

// What a container was, and wrote, is there for the next call; what needs it to run says why that is not so.
func TestRecordedContainers(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	code, stdout, stderr := h.run("", "-q", "run", "--name", "x", "busybox:test", "sh", "-c", "echo run $((++n)); exit 4")
	require.Equal(t, 4, code, stderr)
	require.Equal(t, "run 1\n", stdout)
	code, stdout, _ = h.run("", "-q", "ps", "-a", "--filter", "status=exited")
	require.Zero(t, code)
	require.Contains(t, stdout, "exited (4)")
	code, stdout, _ = h.run("", "-q", "wait", "x")
	require.Zero(t, code)
	require.Equal(t, "4\n", stdout)
	code, stdout, stderr = h.run("", "-q", "logs", "x")
	require.Zero(t, code, stderr)
	require.Equal(t, "run 1\n", stdout)
	code, stdout, stderr = h.run("", "-q", "start", "-a", "x")
	require.Equal(t, 4, code, stderr)
	require.Equal(t, "run 1\n", stdout, "only what it wrote since")
	for _, args := range [][]string{
		{"exec", "x", "true"}, {"attach", "x"}, {"pause", "x"}, {"unpause", "x"}, {"stats", "x"}, {"top", "x"}, {"kill", "x"},
		{"start", "x"}, {"restart", "x"}, {"run", "-d", "busybox:test"},
	} {
		code, stdout, stderr = h.run("", append([]string{"-q"}, args...)...)
		require.Equal(t, exitOwn, code, "%v: %s", args, stderr)
		require.Contains(t, stderr, noDaemon, args)
		require.Empty(t, stdout, args)
	}
	code, _, stderr = h.run("", "-q", "create", "-i", "--name", "in", "busybox:test", "sh", "-c", "read a; cat; exit $a")
	require.Zero(t, code, stderr)
	code, stdout, stderr = h.run("6\nthe rest", "-q", "start", "-a", "-i", "in")
	require.Equal(t, 6, code, stderr)
	require.Equal(t, "the rest", stdout)
	code, _, stderr = h.run("", "-q", "rm", "in")
	require.Zero(t, code, stderr)
	code, _, stderr = h.run("", "-q", "rm", "x", "y")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "y")
	code, _, _ = h.run("", "-q", "inspect", "x")
	require.Equal(t, 1, code)
}

func TestCopyAndCommit(t *testing.T) {
	needsMachine(t)
	h := newHost(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "new file")
	require.NoError(t, os.WriteFile(file, []byte("from the host\n"), 0o644))
	code, stdout, stderr := h.shell(
		"create --name x busybox:test cat '/etc/new file'",
		"cp '"+file+"' x:/etc", "start -a x", "diff x", "commit -m copied x copied:1", "run --rm copied:1 cat '/etc/new file'",
		"run -d --name y copied:1 sleep 1000", "exec y sh -c 'echo from the guest >/tmp/out'", "cp y:/tmp/out "+dir, "export -o "+dir+"/root.tar y",
		"cp x y", "cp x:/none "+dir,
	)
	require.Equal(t, 1, code, stderr)
	require.Equal(t, 2, strings.Count(stdout, "from the host\n"), stdout)
	require.Contains(t, stdout, "A /etc/new file\n")
	require.Contains(t, stderr, "only one, is CONTAINER:PATH")
	require.Contains(t, stderr, "/none")
	text, err := os.ReadFile(filepath.Join(dir, "out"))
	require.NoError(t, err, stderr)
	require.Equal(t, "from the guest\n", string(text))
	root, err := os.ReadFile(filepath.Join(dir, "root.tar"))
	require.NoError(t, err)
	require.Contains(t, string(root), "etc/new file")
}
