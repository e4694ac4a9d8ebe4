package qemu

// rdtsc returns the processor's time stamp counter.
func rdtsc() uint64

// hasTSC tells whether QEMU hands its host's time stamp counter to the guests that it emulates.
const hasTSC = true
