package container

import (
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/agent/api"
	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// RestartPolicy says what happens when a container's process has ended by itself.
type RestartPolicy struct {
	Name       RestartName `json:"name,omitempty"`
	MaxRetries int         `json:"max_retries,omitempty"` // of on-failure; 0 is no end
}

// RestartName names a policy. "" is no.
type RestartName string

// The policies.
const (
	RestartNo            RestartName = "no"
	RestartAlways        RestartName = "always"
	RestartOnFailure     RestartName = "on-failure"
	RestartUnlessStopped RestartName = "unless-stopped"
)

func (p RestartPolicy) validate() error {
	switch p.Name {
	case "", RestartNo, RestartAlways, RestartOnFailure, RestartUnlessStopped:
	default:
		return invalid("restart policy", clip(string(p.Name)), "use no, always, on-failure or unless-stopped")
	}
	if p.MaxRetries < 0 || p.MaxRetries > 0 && p.Name != RestartOnFailure {
		return fmt.Errorf("%w number of restarts %d: only on-failure counts them, and 0 is no end", errs.ErrInvalid, p.MaxRetries)
	}
	return nil
}

// restarts tells that the policy ever does anything.
func (p RestartPolicy) restarts() bool { return p.Name != "" && p.Name != RestartNo }

// again tells whether a process that ended by itself is started again, after so many restarts.
func (p RestartPolicy) again(exit api.Exit, restarts int) bool {
	switch p.Name {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return exit.Code != 0 && (p.MaxRetries == 0 || restarts < p.MaxRetries)
	}
	return false
}

// The waiting times before a restart, as Docker has them.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	goodRun      = 10 * time.Second // a process that ran so long begins anew with the first
)

// nextBackoff returns how long to wait after a run, where last was the wait before it.
func nextBackoff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= goodRun {
		return firstBackoff
	}
	return min(2*last, lastBackoff)
}
