package main

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// told is a process that tells what signals it gets.
type told chan string

func (p told) Signal(_ context.Context, name string) error {
	p <- name
	return nil
}

func (told) Resize(context.Context, uint16, uint16) error { return nil }

// written returns the signals of a process that has written, and the context that they may end.
func written(t *testing.T) (context.Context, *signals) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	s := newSignals(cancel)
	t.Cleanup(s.stop)
	_, err := s.output(io.Discard).Write([]byte("ready\n"))
	require.NoError(t, err)
	for range patience {
		s.ch <- os.Interrupt
	}
	return ctx, s
}

// A process that has written gets the signals that come before its start has returned.
func TestSignalsAroundTheStart(t *testing.T) {
	ctx, s := written(t)
	p := make(told)
	s.forward(p, os.Stdin, false)
	for range patience {
		require.Equal(t, "INT", <-p)
	}
	s.ch <- os.Interrupt
	require.Equal(t, "KILL", <-p)
	require.NoError(t, ctx.Err())
}

// A start whose process has not written is ended by a signal.
func TestSignalsBeforeTheStart(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := newSignals(cancel)
	defer s.stop()
	s.ch <- os.Interrupt
	<-ctx.Done()
	require.ErrorContains(t, context.Cause(ctx), "signal INT")
}

// A start that does not return is given up, whatever its process has written.
func TestSignalsOfAStartThatHangs(t *testing.T) {
	ctx, s := written(t)
	require.NoError(t, ctx.Err())
	s.ch <- os.Interrupt
	<-ctx.Done()
	require.ErrorContains(t, context.Cause(ctx), "signal INT")
}
