//go:build !linux

package engine

import (
	"context"
	"net"
)

// hangup waits for the end of ctx.
func hangup(ctx context.Context, _ net.Conn) { <-ctx.Done() }
