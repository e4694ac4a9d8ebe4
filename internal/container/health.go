package container

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/arcboxlabs/arcbox-go/event"
)

// HealthStatus is what a health check says of a container.
type HealthStatus string

// The states of health.
const (
	HealthStarting  HealthStatus = "starting"
	HealthHealthy   HealthStatus = "healthy"
	HealthUnhealthy HealthStatus = "unhealthy"
)

// Health is what the checks of a container's run have found.
type Health struct {
	Status        HealthStatus
	FailingStreak int // failures in a row
	Log           []HealthResult
}

// HealthResult is one check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int    // -1 where the command could not be executed or did not end in time
	Output     string // the beginning of what it wrote
}

const (
	maxHealthLog    = 5
	maxHealthOutput = 4096 // bytes
)

func (h *Health) clone() *Health {
	if h == nil {
		return nil
	}
	c := *h
	c.Log = slices.Clone(h.Log)
	return &c
}

// watchHealth begins the checks of a run that was just started. The caller holds mu.
func (m *Manager) watchHealth(e *entry) {
	e.info.Health = nil
	if e.info.Check == nil || m.closed {
		return
	}
	e.info.Health = &Health{Status: HealthStarting}
	c, r, started := e.info.Check, e.run, e.info.Started
	m.wg.Go(func() {
		ctx, cancel := context.WithCancel(m.ctx)
		defer cancel()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			select {
			case <-r.done:
				cancel()
			case <-stop:
			}
		})
		m.checkHealth(ctx, e, r, c, started)
		close(stop)
		wg.Wait()
	})
}

// checkHealth checks until ctx ends, one check after the other.
func (m *Manager) checkHealth(ctx context.Context, e *entry, r *run, c *HealthCheck, started time.Time) {
	t := time.NewTimer(0)
	defer t.Stop()
	<-t.C
	begun := false // a check has succeeded: the start is over
	for {
		wait := c.Interval
		if !begun && time.Since(started) < c.StartPeriod {
			wait = c.StartInterval
		}
		t.Reset(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		res, ok := m.probe(ctx, e, c)
		if !ok {
			continue
		}
		starting := !begun && res.Start.Sub(started) < c.StartPeriod
		begun = begun || res.ExitCode == 0
		m.judge(e, r, c, res, starting)
	}
}

// probe executes the command once. It is not ok where that says nothing of the container's health: it is paused, or has
// ended.
func (m *Manager) probe(ctx context.Context, e *entry, c *HealthCheck) (HealthResult, bool) {
	m.mu.Lock()
	running := e.info.State == StateRunning
	m.mu.Unlock()
	if !running {
		return HealthResult{}, false
	}
	res := HealthResult{Start: time.Now(), ExitCode: -1}
	tctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out := &limited{left: maxHealthOutput}
	x, err := m.Exec(tctx, e.id, ExecSpec{Args: c.command()}, out, out)
	if err == nil {
		exit, werr := x.Wait(tctx)
		_ = x.Close() // kills what has not ended
		if err = werr; err == nil {
			res.ExitCode = exit.Code
		}
	}
	switch {
	case ctx.Err() != nil:
		return res, false
	case tctx.Err() != nil:
		out.add(fmt.Sprintf("the check did not end within %s", c.Timeout))
	case err != nil:
		m.mu.Lock()
		running = e.info.State == StateRunning
		m.mu.Unlock()
		if !running {
			return res, false
		}
		out.add(err.Error())
	}
	res.End, res.Output = time.Now(), out.String()
	return res, true
}

// judge records a result.
func (m *Manager) judge(e *entry, r *run, c *HealthCheck, res HealthResult, starting bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := e.info.Health
	if e.run != r || isDone(r.done) || h == nil {
		return
	}
	if h.Log = append(h.Log, res); len(h.Log) > maxHealthLog {
		h.Log = slices.Clone(h.Log[len(h.Log)-maxHealthLog:])
	}
	was := h.Status
	switch {
	case res.ExitCode == 0:
		h.Status, h.FailingStreak = HealthHealthy, 0
	case starting:
	default:
		if h.FailingStreak++; h.FailingStreak >= c.Retries {
			h.Status = HealthUnhealthy
		}
	}
	close(e.changed)
	e.changed = make(chan struct{})
	if h.Status != was {
		m.publish(event.ContainerHealth, e.info, map[string]string{event.AttrHealth: string(h.Status)})
	}
}

// limited keeps the beginning of what is written.
type limited struct {
	mu   sync.Mutex
	b    []byte
	left int
}

// Write implements io.Writer and takes everything.
func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), l.left)
	l.b, l.left = append(l.b, p[:n]...), l.left-n
	return len(p), nil
}

// add appends a remark.
func (l *limited) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, s...)
}

// String returns what was kept.
func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
