package qemu

import (
	"sync"
	"time"
)

// An emulated processor's time stamp counter is that of the host's processor. A guest measures its rate while it boots,
// against an emulated clock, and takes what it finds for the truth: on a busy host that can be many times too little, and
// all its time, that of the machines which go on from it included, runs too fast by as much. So the guest is told.

// rateTime is how long a counter is watched at least. A sample is good to some 100 ns.
const rateTime = 2 * time.Millisecond

// nanosecondRate is the rate in kHz of a counter of nanoseconds.
const nanosecondRate = 1_000_000

// tscRate finds out the rate of the time stamp counter that QEMU gives to the processors it emulates. Make one with
// newTSCRate.
type tscRate struct {
	first tscSample
	once  sync.Once
	rate  int
}

// tscSample is the counter at one moment.
type tscSample struct {
	at    time.Time
	count uint64
}

func newTSCRate() *tscRate { return &tscRate{first: sampleTSC()} }

// sampleTSC takes the sample that was interrupted the least.
func sampleTSC() (best tscSample) {
	shortest := time.Duration(1<<63 - 1)
	for range 16 {
		before := time.Now()
		count := rdtsc()
		if took := time.Since(before); took < shortest {
			shortest, best = took, tscSample{before.Add(took / 2), count}
		}
	}
	return best
}

// kHz returns the rate. The first call may wait until the counter was watched for rateTime.
func (r *tscRate) kHz() int {
	r.once.Do(func() {
		if !hasTSC {
			r.rate = nanosecondRate
			return
		}
		<-time.After(rateTime - time.Since(r.first.at))
		last := sampleTSC()
		r.rate = int(float64(last.count-r.first.count) / float64(last.at.Sub(r.first.at)) * 1e6)
	})
	return r.rate
}

// coarse returns a rate to the next 10 MHz, in kHz: the same for all processes of a host, and different where a saved
// machine's time would not run as it should.
func coarse(kHz int) int { return (kHz + 5_000) / 10_000 * 10_000 }
