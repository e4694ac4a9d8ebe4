package machine

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest"
)

// A guest that never answers is no reason to wait for ever, whoever waits for it.
func TestGuestThatDoesNotAnswer(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		fake := &vmtest.Fake{Ports: map[uint32]func(*vmtest.FakeInstance, net.Conn){
			api.Port: func(_ *vmtest.FakeInstance, c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		}}
		cfg := r.cfg
		cfg.Driver = fake
		began := time.Now()
		_, err := launch(t.Context(), cfg, vm.Spec{Arch: "amd64", Kernel: r.cfg.dataDisk.Path})
		require.ErrorIs(t, err, errs.ErrUnavailable)
		require.ErrorContains(t, err, "has not answered for 3m0s")
		require.Equal(t, answerLimit, time.Since(began))
		<-fake.Started()[0].Done()
	})
}
