package splice_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/arcboxlabs/arcbox-go/internal/splice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a TCP connection.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	a, err := l.Accept()
	require.NoError(t, err)
	for _, c := range []net.Conn{a, c} {
		t.Cleanup(func() { c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	}
	return a.(*net.TCPConn), c.(*net.TCPConn)
}

// leaving is a connection that tells that its other side has gone.
type leaving struct {
	*net.TCPConn
	gone chan struct{}
}

func (l leaving) Gone() <-chan struct{} { return l.gone }

func TestJoin(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(cancel func(), gone chan struct{}, a, b *net.TCPConn)
		want error // of a read at the other end; nil is any
	}{
		"both directions": {func(_ func(), _ chan struct{}, a, b *net.TCPConn) { a.CloseWrite(); b.CloseWrite() }, io.EOF},
		"context":         {func(cancel func(), _ chan struct{}, _, _ *net.TCPConn) { cancel() }, nil},
		"reset":           {func(_ func(), _ chan struct{}, a, _ *net.TCPConn) { _ = a.SetLinger(0); a.Close() }, nil},
		"gone":            {func(_ func(), gone chan struct{}, a, _ *net.TCPConn) { a.CloseWrite(); close(gone) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a, in := pair(t)
			b, out := pair(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done, gone := make(chan struct{}), make(chan struct{})
			go func() { // waited for below
				defer close(done)
				splice.Join(ctx, leaving{in, gone}, out)
			}()
			for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
				_, err := io.WriteString(ends[0], "hello")
				require.NoError(t, err)
				buf := make([]byte, 5)
				_, err = io.ReadFull(ends[1], buf)
				require.NoError(t, err)
			}
			c.end(cancel, gone, a, b)
			<-done
			_, err := b.Read(make([]byte, 1))
			require.Error(t, err)
			if c.want != nil {
				require.Equal(t, c.want, err)
			}
		})
	}
}
