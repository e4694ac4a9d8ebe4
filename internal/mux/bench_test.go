package mux

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func BenchmarkRoundTrip(b *testing.B) {
	p := newPair(b)
	p.guest.Handle(1, echo)
	c := p.dial(b, 1)
	buf := make([]byte, 100)
	for b.Loop() {
		_, err := c.Write(buf)
		require.NoError(b, err)
		_, err = io.ReadFull(c, buf)
		require.NoError(b, err)
	}
}

func BenchmarkToGuest(b *testing.B) {
	p := newPair(b)
	p.guest.Handle(1, func(c net.Conn) { io.Copy(io.Discard, c) })
	c := p.dial(b, 1)
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		_, err := c.Write(buf)
		require.NoError(b, err)
	}
}

func BenchmarkDial(b *testing.B) {
	p := newPair(b)
	p.guest.Handle(1, echo)
	buf := make([]byte, 1)
	for b.Loop() {
		c, err := p.host.Dial(b.Context(), 1)
		require.NoError(b, err)
		_, err = c.Write(buf)
		require.NoError(b, err)
		_, err = io.ReadFull(c, buf)
		require.NoError(b, err)
		c.Close()
	}
}
