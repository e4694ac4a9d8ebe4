package guest_test

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/seccomp"
)

func TestInit(t *testing.T) {
	m := useMachine(t)
	withInit := func(r *api.CreateRequest) { r.Init = true }
	t.Run("reaps orphans", func(t *testing.T) {
		// The orphans end at once; without a reaper the loop has no end.
		out := m.sh(t, `for i in 1 2 3 4 5; do (sh -c 'exit 3' & ); done
			while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ' Z '; do :; done
			echo $$ is not 1; cut -d' ' -f4 /proc/self/stat >/dev/null; echo $PPID`, withInit)
		require.Regexp(t, `^([2-9]|[0-9]{2,}) is not 1\n1\n$`, out)
	})
	for name, tc := range map[string]struct {
		args []string
		exit api.Exit
		err  error
	}{
		"code":           {[]string{"sh", "-c", "exit 42"}, api.Exit{Code: 42}, nil},
		"signal":         {[]string{"sh", "-c", "kill -9 $$"}, api.Exit{Code: 137}, nil},
		"no command":     {[]string{"nosuch"}, api.Exit{Code: 127}, errs.ErrNoCommand},
		"no executable":  {[]string{"/bin/plain"}, api.Exit{Code: 126}, errs.ErrNoExecutable},
		"search of PATH": {[]string{"tool"}, api.Exit{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := m.run(t, request(t, tc.args, withInit), "")
			require.ErrorIs(t, err, tc.err)
			require.Equal(t, tc.exit, r.exit, r.stderr)
		})
	}
	t.Run("forwards signals", func(t *testing.T) {
		ctx := testContext(t)
		req := request(t, []string{"sh", "-c", "trap 'echo got; exit 7' TERM; echo ready; while true; do sleep 1000 & wait; done"}, withInit)
		m.create(t, req)
		out := newLines()
		p, err := m.Attach(ctx, api.AttachRequest{ID: req.ID}, out, nil)
		require.NoError(t, err)
		defer p.Close()
		_, err = m.Start(ctx, api.StartRequest{ID: req.ID})
		require.NoError(t, err)
		out.await(t, "ready")
		require.NoError(t, m.Kill(ctx, api.KillRequest{ID: req.ID, Signal: "TERM"}))
		exit, err := p.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, api.Exit{Code: 7}, exit)
	})
	t.Run("with everything", func(t *testing.T) {
		prog, err := seccomp.Default(runtime.GOARCH, nil)
		require.NoError(t, err)
		out := m.sh(t, `id -u; grep NoNewPrivs /proc/1/status | cut -f2; ls /proc/self/fd | wc -l; ulimit -n; (echo x > /proc/1/exe) 2>/dev/null || echo protected`, withInit, withUser("1000"), func(r *api.CreateRequest) {
			r.Process.NoNewPrivileges, r.Process.Seccomp, r.ReadOnly = true, prog, true
		})
		require.Equal(t, "1000\n1\n4\n1024\nprotected\n", out)
	})
	t.Run("the command has the terminal", func(t *testing.T) {
		r, err := m.run(t, request(t, []string{"sh", "-c", "stty -echo && echo fine"}, withInit, func(r *api.CreateRequest) { r.Process.TTY = true }), "")
		require.NoError(t, err)
		require.Equal(t, "fine\r\n", r.stdout)
	})
	t.Run("its executable is protected from root", func(t *testing.T) {
		out := m.sh(t, `(echo x > /proc/1/exe) 2>/dev/null || echo protected`, withInit, func(r *api.CreateRequest) { r.Privileged = true })
		require.Equal(t, "protected\n", out)
	})
}
