package vmtest

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/arcboxlabs/arcbox-go/vm"
	"github.com/arcboxlabs/arcbox-go/vm/vmtest/guest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	Conformance(t, func(t *testing.T) (vm.Driver, vm.Spec) { return NewGuestFake(), vm.Spec{Kernel: "none"} })
}

func TestHungFakeConforms(t *testing.T) {
	f := NewGuestFake()
	f.Hung = true
	Conformance(t, func(t *testing.T) (vm.Driver, vm.Spec) { return f, vm.Spec{Kernel: "none"} })
}

func TestStartFails(t *testing.T) {
	boom := errors.New("boom")
	f := &Fake{OnStart: func(context.Context, vm.Spec) error { return boom }}
	_, err := f.Start(t.Context(), vm.Spec{Kernel: "none"})
	require.ErrorIs(t, err, boom)
	require.Empty(t, f.Started())
}

func TestDialWaitsForBoot(t *testing.T) {
	booted := make(chan struct{})
	f := NewGuestFake()
	f.Booted = booted
	m, err := f.Start(t.Context(), vm.Spec{Kernel: "none"})
	require.NoError(t, err)
	defer m.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = m.Dial(ctx, guest.PortEcho)
	require.ErrorIs(t, err, context.Canceled)
	close(booted)
	require.NoError(t, echoOnce(m, []byte("x")))
}

func TestCrashBeforeBoot(t *testing.T) {
	f := NewGuestFake()
	f.Booted = make(chan struct{})
	m, err := f.Start(t.Context(), vm.Spec{Kernel: "none"})
	require.NoError(t, err)
	f.Started()[0].Crash("a cosmic ray")
	_, err = m.Dial(t.Context(), guest.PortEcho)
	require.ErrorIs(t, err, errs.ErrUnavailable)
	require.ErrorContains(t, err, "a cosmic ray")
	<-m.Done()
	require.ErrorContains(t, m.Err(), "a cosmic ray")
}
