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
		if u := m.user(i); u.Image.Validate() == nil { // not so where the record is damaged
			users = append(users, u)
		}
	}
	if err := m.cfg.Images.Restore(ctx, mine, users); err != nil {
		return nil, fmt.Errorf("restore the images of containers: %w", err)
	}
	return infos, nil
}
