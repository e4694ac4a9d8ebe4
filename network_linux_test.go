package arcbox_test

import (
	"context"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go"
)

// TestNetworkAcrossMachines has containers of two machines in one network find each other. When one machine stops to read its
// frames, the other and the program go on, and when it reads again it is reached as before.
func TestNetworkAcrossMachines(t *testing.T) {
	rt := shared.get(t)
	ctx := testContext(t)
	far := "far" + strconv.Itoa(os.Getpid())
	_, err := rt.CreateMachine(ctx, arcbox.MachineSpec{Name: far})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, rt.RemoveMachine(context.Background(), far, arcbox.RemoveMachineOptions{Force: true}))
	})
	newNetwork(t, rt, arcbox.NetworkSpec{Name: "wide", Internal: true})
	on := []arcbox.NetworkAttachment{{Network: "wide"}}
	here := start(t, rt, web("here", arcbox.ContainerSpec{Networks: on}))
	client := start(t, rt, arcbox.ContainerSpec{Name: "near", Networks: on})
	there := start(t, rt, web("there", arcbox.ContainerSpec{Networks: on, Machine: far}))
	for _, c := range []arcbox.ContainerInfo{here, there} {
		require.NoError(t, rt.WaitFor(ctx, c.ID, arcbox.ForListeningPort(80)))
	}
	ask := func(from, name string) string {
		out, _ := in(t, rt, from, "timeout 60 wget -q -O - http://"+name+"/")
		return out
	}
	require.Equal(t, "page of there\n", ask(client.ID, "there"))
	require.Equal(t, "page of here\n", ask(there.ID, "here"))

	qemu := processOf(t, far)
	require.NoError(t, syscall.Kill(qemu, syscall.SIGSTOP))
	out, code := in(t, rt, client.ID, `for i in $(seq 40); do (wget -q -T 2 -O - http://there/ & nc -u -w 1 there 9 < /bin/busybox &) >/dev/null 2>&1; done; sleep 1`)
	require.Zero(t, code, out)
	require.Equal(t, "page of here\n", ask(client.ID, "here"))
	conn, err := rt.Dial(ctx, here.ID, "tcp", ":80")
	require.NoError(t, err)
	conn.Close()
	require.NoError(t, syscall.Kill(qemu, syscall.SIGCONT))
	require.Equal(t, "page of there\n", ask(client.ID, "there"))
}
