package lifecycle

import "time"

// The defaults of RecoveryPolicy.
const (
	DefaultBackoff    = 500 * time.Millisecond
	DefaultMaxBackoff = 30 * time.Second
	DefaultResetAfter = time.Minute
)

// RecoveryPolicy says what happens after a crash and after a start that fails. The zero value recovers nothing: an error
// of a start goes to those who wait for it, and a crashed target is started by the next Acquire.
//
// A target is started anew while somebody wants it: somebody waits for it, or held it when it crashed. Each attempt in
// a row waits twice as long as the one before.
type RecoveryPolicy struct {
	MaxRetries int                  // attempts in a row; 0 is none, negative is without end
	Backoff    time.Duration        // before the first attempt; 0 is DefaultBackoff
	MaxBackoff time.Duration        // no wait is longer; 0 is DefaultMaxBackoff
	ResetAfter time.Duration        // a target that ran this long before it crashed has recovered: the count begins anew; 0 is DefaultResetAfter
	Retryable  func(err error) bool // tells whether another attempt can help after err; nil is always
}

// withDefaults returns p with every zero field set.
func (p RecoveryPolicy) withDefaults() RecoveryPolicy {
	if p.Backoff <= 0 {
		p.Backoff = DefaultBackoff
	}
	if p.MaxBackoff <= 0 {
		p.MaxBackoff = DefaultMaxBackoff
	}
	if p.ResetAfter <= 0 {
		p.ResetAfter = DefaultResetAfter
	}
	if p.Retryable == nil {
		p.Retryable = func(error) bool { return true }
	}
	return p
}

// delay returns how long to wait before another attempt after that many failures in a row, the last with err, and
// whether there is another one.
func (p RecoveryPolicy) delay(failures int, err error) (time.Duration, bool) {
	if p.MaxRetries >= 0 && failures > p.MaxRetries || !p.Retryable(err) {
		return 0, false
	}
	d := min(p.Backoff, p.MaxBackoff)
	for range failures - 1 {
		if d >= p.MaxBackoff/2 {
			return p.MaxBackoff, true
		}
		d *= 2
	}
	return d, true
}
