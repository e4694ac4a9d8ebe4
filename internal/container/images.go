package container

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/arcboxlabs/arcbox-go/internal/image"
)

// user is a container as a user of its image.
func (m *Manager) user(i Info) image.User {
	return image.User{
		ID: i.ID, Name: i.Name, Group: i.Machine, Image: digest.Digest(i.ImageID),
		Lasting: m.records != nil && !i.Spec.AutoRemove && m.cfg.keeps(i.Machine),
	}
}

// claim tells the store that a container is about to run. The caller holds op.
func (m *Manager) claim(ctx context.Context, e *entry) error {
	m.mu.Lock()
	by, known := m.user(e.info), e.marked
	m.mu.Unlock()
	if known || by.Image.Validate() != nil {
		return nil
	}
	if err := m.cfg.Images.Run(ctx, by); err != nil {
		return fmt.Errorf("start container %q: %w", by.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e.marked = true
	return nil
}

// mark tells the store whether a container runs, where that has changed. The caller holds mu.
func (m *Manager) mark(e *entry) {
	if runs := e.starting || e.info.State.live(); runs != e.marked {
		e.marked = runs
		by := m.user(e.info)
		by.Running = runs
		m.cfg.Images.Renew(by)
	}
}

// restoreTimeout bounds the wait for other processes that change records of images.
const restoreTimeout = 10 * time.Second

// load reads the records of the containers of some machines, and tells the store which images these need.
func (m *Manager) load(mine func(machine string) bool) ([]Info, error) {
	infos, err := loadRecords(m.cfg.Dir, mine, m.cfg.Logger)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), restoreTimeout)
	defer cancel()
	var users []image.User
	for _, i := range infos {
		u := m.user(i)
		m.mu.Lock()
		u.Running = m.entries[i.ID] != nil && m.entries[i.ID].marked
		m.mu.Unlock()
		if u.Image.Validate() == nil { // not so where the record is damaged
			users = append(users, u)
		}
	}
	if err := m.cfg.Images.Restore(ctx, mine, users); err != nil {
		return nil, fmt.Errorf("restore the images of containers: %w", err)
	}
	return infos, nil
}
