package vz

import "net"

// framework is one machine of the Virtualization framework. Its calls block until they are done, without a bound: that is
// how the binding has them. They may be called from many goroutines.
type framework interface {
	start() error
	stop() error        // pulls the plug
	requestStop() error // presses the power button
	pause() error
	resume() error
	save(path string) error    // of a paused machine
	restore(path string) error // of a machine that was not started; it is paused then
	// connect opens a connection to a port of the guest. It may never return where the guest does not listen.
	connect(port uint32) (net.Conn, error)
	// states gets every state that the machine comes to.
	states() <-chan state
	// release lets go of everything that belongs to the machine, which has ended.
	release()
}

// state is what the driver needs to know of a machine's state.
type state int

const (
	stateOther   state = iota // on its way, running or paused
	stateStopped              // it has ended in good order
	stateError                // it has ended by an error
)
