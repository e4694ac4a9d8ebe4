package vz

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The binding leaves one goroutine behind for each machine.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/Code-Hex/go-infinity-channel.(*Channel[...]).infiniteBuffer"))
}
