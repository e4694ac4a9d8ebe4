package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/agent"
	"github.com/arcboxlabs/arcbox-go/agent/agenttest"
	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/internal/guest/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{
		"TERM": 15, "SIGTERM": 15, "sigterm": 15, "9": 9, "KILL": 9, "HUP": 1, "SYS": 31, "IO": 29, "POLL": 29, "CLD": 17, "IOT": 6,
		"RTMIN": 34, "RTMIN+0": 34, "RTMIN+30": 64, "RTMAX": 64, "RTMAX-30": 34, "64": 64,
	} {
		got, err := engine.ParseSignal(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "0", "65", "-1", "NOPE", "SIG", "RTMIN+31", "RTMAX-31", "RTMIN+", "RTMIN+-1", strings.Repeat("x", 1000), " TERM"} {
		_, err := engine.ParseSignal(in)
		require.ErrorIs(t, err, errs.ErrInvalid, in)
		require.Less(t, len(err.Error()), 200)
	}
	for n := 1; n <= 64; n++ {
		got, err := engine.ParseSignal(engine.SignalName(n))
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
}

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "0", "a.b-c_d", strings.Repeat("x", 128)} {
		require.NoError(t, engine.CheckID(id), id)
	}
	for _, id := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "ä", "a\x00", strings.Repeat("x", 129)} {
		require.ErrorIs(t, engine.CheckID(id), errs.ErrInvalid, id)
	}
}

func valid() api.CreateRequest {
	return api.CreateRequest{ID: "a", Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{"true"}, Env: []string{"A=b", "C="}, Cwd: "/x"}}
}

func TestCheckCreate(t *testing.T) {
	require.NoError(t, engine.CheckCreate(valid()))
	for name, change := range map[string]func(*api.CreateRequest){
		"id":             func(r *api.CreateRequest) { r.ID = "/" },
		"no layers":      func(r *api.CreateRequest) { r.Layers = nil },
		"many layers":    func(r *api.CreateRequest) { r.Layers = make([]api.Layer, 128) },
		"empty serial":   func(r *api.CreateRequest) { r.Layers[0].Serial = "" },
		"long serial":    func(r *api.CreateRequest) { r.Layers[0].Serial = strings.Repeat("x", 21) },
		"serial":         func(r *api.CreateRequest) { r.Layers[0].Serial = "a/b" },
		"host name":      func(r *api.CreateRequest) { r.Hostname = "a\nb" },
		"long host name": func(r *api.CreateRequest) { r.Hostname = strings.Repeat("x", 65) },
		"no arguments":   func(r *api.CreateRequest) { r.Process.Args = nil },
		"many arguments": func(r *api.CreateRequest) { r.Process.Args = make([]string, 4097) },
		"long argument":  func(r *api.CreateRequest) { r.Process.Args[0] = strings.Repeat("x", 128<<10) },
		"zero byte":      func(r *api.CreateRequest) { r.Process.Args[0] = "\x00" },
		"variable":       func(r *api.CreateRequest) { r.Process.Env = []string{"A"} },
		"nameless":       func(r *api.CreateRequest) { r.Process.Env = []string{"=A"} },
		"cwd":            func(r *api.CreateRequest) { r.Process.Cwd = "x" },
		"long cwd":       func(r *api.CreateRequest) { r.Process.Cwd = "/" + strings.Repeat("x", 4096) },
		"user":           func(r *api.CreateRequest) { r.Process.User = "a\nb" },
	} {
		t.Run(name, func(t *testing.T) {
			req := valid()
			change(&req)
			require.ErrorIs(t, engine.CheckCreate(req), errs.ErrInvalid)
		})
	}
}

func FuzzCheckDial(f *testing.F) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:80", "tcp6": "[::1]:80", "unix": "/run/s", "tcp4": "x:0"} {
		f.Add(network, address)
	}
	f.Add("unix", "@name")
	f.Fuzz(func(t *testing.T, network, address string) {
		if err := engine.CheckDial(api.DialRequest{Network: network, Address: address}); err != nil {
			require.ErrorIs(t, err, errs.ErrInvalid)
			return
		}
		require.NotContains(t, address, "\x00")
		if network == "unix" {
			require.True(t, address[0] == '/' && len(address) < 4096 || address[0] == '@' && len(address) <= 107)
			return
		}
		_, err := netip.ParseAddrPort(address)
		require.NoError(t, err)
	})
}

func FuzzCheckCreate(f *testing.F) {
	b, err := json.Marshal(valid())
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		var req api.CreateRequest
		if json.Unmarshal(in, &req) != nil {
			return
		}
		if err := engine.CheckCreate(req); err != nil {
			require.ErrorIs(t, err, errs.ErrInvalid)
			return
		}
		require.False(t, strings.ContainsAny(req.ID, "/\x00") || req.ID == "..")
		require.NotEmpty(t, req.Process.Args)
	})
}

func FuzzParseSignal(f *testing.F) {
	f.Add("RTMIN+1")
	f.Fuzz(func(t *testing.T, in string) {
		if n, err := engine.ParseSignal(in); err == nil {
			require.True(t, n >= 1 && n <= 64)
		}
	})
}

// TestHammer does everything to a few containers at once: nothing may hang, and what is left can be removed.
func TestHammer(t *testing.T) {
	a := agenttest.New(map[string]agenttest.Command{
		"run": func(ctx context.Context, p *agenttest.Process) int {
			fmt.Fprint(p.Stdout, strings.Repeat("x", 1000))
			select {
			case <-p.Signals:
			case <-ctx.Done():
			}
			return 7
		},
	})
	c := agent.New(a.Dial)
	ctx := t.Context()
	var wg sync.WaitGroup
	for g := range 12 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 60 {
				id := fmt.Sprint("c", rng.IntN(3))
				cmd := []string{"run", "nope"}[rng.IntN(2)]
				switch rng.IntN(8) {
				case 6:
					_ = c.Pause(ctx, api.PauseRequest{ID: id, Resume: rng.IntN(2) == 0})
				case 7:
					_ = c.Update(ctx, api.UpdateRequest{ID: id, Resources: api.Resources{PIDs: 5}})
				case 0:
					_ = c.Create(ctx, api.CreateRequest{ID: id, Layers: []api.Layer{{Serial: "x"}}, Process: api.Process{Args: []string{cmd}}})
				case 1:
					_, _ = c.Start(ctx, api.StartRequest{ID: id})
				case 2:
					_ = c.Kill(ctx, api.KillRequest{ID: id, Signal: "TERM"})
				case 3:
					_ = c.Remove(ctx, api.RemoveRequest{ID: id, Force: rng.IntN(2) == 0})
				case 4:
					if p, err := c.Attach(ctx, api.AttachRequest{ID: id}, nil, nil); err == nil {
						p.Close()
					}
				case 5:
					wctx, cancel := context.WithCancel(ctx)
					cancel()
					_, _ = c.Wait(wctx, api.WaitRequest{ID: id})
				}
			}
		})
	}
	wg.Wait()
	for i := range 3 {
		err := c.Remove(ctx, api.RemoveRequest{ID: fmt.Sprint("c", i), Force: true})
		if err != nil {
			require.ErrorIs(t, err, errs.ErrNotFound)
		}
	}
	a.Close()
}
