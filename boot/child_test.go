package boot

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// childMain is a process of its own that resolves what its environment says and prints the digest.
func childMain() int {
	a, err := Resolve(context.Background(), Config{
		Dir: os.Getenv("BOOT_TEST_CHILD"), Arch: "amd64", Agent: os.Getenv("BOOT_TEST_AGENT"),
		URL: os.Getenv("BOOT_TEST_URL"), SHA256: os.Getenv("BOOT_TEST_SUM"),
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(a.Digest)
	return 0
}

func childOf(dir, agent, url, sum string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BOOT_TEST_CHILD="+dir, "BOOT_TEST_AGENT="+agent, "BOOT_TEST_URL="+url, "BOOT_TEST_SUM="+sum)
	return cmd
}

func TestProcessesAtOnceDoTheWorkOnce(t *testing.T) {
	data, sum := testPackage()
	url, requests := server(t, data)
	dir, agent := t.TempDir(), testAgent(t)
	outs := make(chan string)
	const n = 4
	for range n {
		go func() {
			out, err := childOf(dir, agent, url, sum).Output()
			if err != nil {
				outs <- err.Error() + ": " + string(out)
				return
			}
			outs <- string(out)
		}()
	}
	first := <-outs
	require.Len(t, first, 65, first)
	for range n - 1 {
		require.Equal(t, first, <-outs)
	}
	require.EqualValues(t, 1, requests.Load())
}

// A process is killed in the middle of a download; the next one finds no half entry and no lock.
func TestKilledProcessHoldsUpNobody(t *testing.T) {
	data, sum := testPackage()
	var requests atomic.Int32
	inside, finish := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			_, _ = w.Write(data[:1000])
			_ = http.NewResponseController(w).Flush()
			close(inside)
			<-r.Context().Done()
			close(finish)
			return
		}
		_, _ = w.Write(data)
	}))
	defer s.Close()
	dir, agent := t.TempDir(), testAgent(t)
	victim := childOf(dir, agent, s.URL, sum)
	require.NoError(t, victim.Start())
	<-inside
	require.NoError(t, victim.Process.Kill())
	_ = victim.Wait()
	<-finish
	require.NotEmpty(t, leftovers(t, dir), "it died in the middle")
	_, err := Resolve(t.Context(), Config{Dir: dir, Arch: "amd64", URL: s.URL, SHA256: sum, Agent: agent})
	require.NoError(t, err)
	require.Empty(t, leftovers(t, dir))
}

func TestChildErrorHoldsItsLastWords(t *testing.T) {
	_, err := child{path: "/bin/sh", args: []string{"-c", "echo oops >&2; exit 3"}}.run(t.Context())
	require.ErrorContains(t, err, "exit status 3: oops")
	_, err = child{path: "/missing"}.run(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	var status bounded
	out, err := child{path: "/bin/sh", args: []string{"-c", "echo out; echo status >&3"}, status: &status}.run(t.Context())
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out))
	require.Equal(t, "status\n", status.String())
}
