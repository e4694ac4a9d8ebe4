package container

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
)

// HealthCheck is a command that tells whether a container is well. It has the form of Docker's images.
type HealthCheck struct {
	// Test is the command: CMD and its arguments, CMD-SHELL and a script, or NONE. Empty is the image's.
	Test          []string      `json:"Test,omitempty"`
	Interval      time.Duration `json:"Interval,omitempty"`
	Timeout       time.Duration `json:"Timeout,omitempty"`
	StartPeriod   time.Duration `json:"StartPeriod,omitempty"`
	StartInterval time.Duration `json:"StartInterval,omitempty"`
	Retries       int           `json:"Retries,omitempty"`
}

// The defaults of a health check, as Docker has them.
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
)

// The kinds of a health check's Test.
const (
	testCommand = "CMD"
	testShell   = "CMD-SHELL"
	testNone    = "NONE"
)

func (h *HealthCheck) validate() error {
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 {
		switch kind, rest := h.Test[0], h.Test[1:]; {
		case kind == testNone && len(rest) == 0:
		case kind == testCommand && len(rest) > 0 && rest[0] != "":
		case kind == testShell && len(rest) == 1:
		default:
			return invalid("health check", clip(fmt.Sprint(h.Test)), "use CMD and a command with its arguments, CMD-SHELL and one script, or NONE alone")
		}
		if err := validateStrings(h.Test); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"interval", h.Interval}, {"timeout", h.Timeout}, {"start period", h.StartPeriod}, {"start interval", h.StartInterval},
	} {
		if d.d < 0 || d.d > 0 && d.d < time.Millisecond {
			return invalid(d.name+" of the health check", d.d.String(), "use at least 1ms, or 0 for the default")
		}
	}
	if h.Retries < 0 {
		return invalid("retries of the health check", fmt.Sprint(h.Retries), "use 1 or more, or 0 for 3")
	}
	return nil
}

// compileHealth joins the check of a spec with that of its image. It is nil where there is none.
func compileHealth(spec *HealthCheck, raw []byte) (*HealthCheck, error) {
	var h HealthCheck
	if spec == nil || len(spec.Test) == 0 {
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &h); err != nil {
				return nil, fmt.Errorf("%w health check of the image: %w: give one of your own, or NONE", errs.ErrInvalid, err)
			}
			if err := h.validate(); err != nil {
				return nil, fmt.Errorf("health check of the image: %w; give one of your own, or NONE", err)
			}
		}
	}
	if spec != nil {
		if len(spec.Test) > 0 {
			h.Test = spec.Test
		}
		set(&h.Interval, spec.Interval)
		set(&h.Timeout, spec.Timeout)
		set(&h.StartPeriod, spec.StartPeriod)
		set(&h.StartInterval, spec.StartInterval)
		set(&h.Retries, spec.Retries)
	}
	if len(h.Test) == 0 || h.Test[0] == testNone {
		return nil, nil
	}
	orElse(&h.Interval, defaultInterval)
	orElse(&h.Timeout, defaultTimeout)
	orElse(&h.StartInterval, defaultStartInterval)
	orElse(&h.Retries, defaultRetries)
	return &h, nil
}

func orElse[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// command returns the command to execute.
func (h *HealthCheck) command() []string {
	if h.Test[0] == testShell {
		return []string{"/bin/sh", "-c", h.Test[1]}
	}
	return h.Test[1:]
}
