package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/arcboxlabs/arcbox-go/internal/errs"
	"github.com/opencontainers/go-digest"
)

// User is who needs an image for longer than a call: a container.
type User struct {
	ID    string        // unique; letters, digits, '-' and '_'
	Name  string        // for messages
	Image digest.Digest // that it needs
	Group string        // of users with one owner, see Restore
	// Lasting says that it outlives the Store. Another one needs its image until the Store is closed or its process ends.
	Lasting bool
	// Running says that it works with the image now, in this Store: not even force removes the image then. That ends with
	// the Store or its process as well.
	Running bool
}

// use is the record of a user.
type use struct {
	Name    string        `json:"name"`
	Image   digest.Digest `json:"image"`
	Group   string        `json:"group,omitempty"`
	Session string        `json:"session,omitempty"` // that it ends with; "" is lasting
	Running string        `json:"running,omitempty"` // session in which it runs; "" is none
}

// usePath is where a user is recorded. One that ends with a session has a place of its own there: a machine that goes on
// from a saved one has containers with the ids of those that were saved.
func (s *Store) usePath(id, session string) string {
	if session != "" {
		id += "." + session
	}
	return filepath.Join(s.dir, "uses", id+".json")
}

// Use finds an image as Get does and records that the user needs it, so that Prune keeps all of it. by.Image is not looked
// at. A second call for one user takes the place of the first.
func (s *Store) Use(ctx context.Context, ref string, by User) (Image, error) {
	// Nobody takes the image away between finding and recording.
	_, end, err := s.beginRecords(ctx, false, false)
	if err != nil {
		return Image{}, err
	}
	defer end()
	rec, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	by.Image = rec.ID
	if err := s.writeUse(by); err != nil {
		return Image{}, err
	}
	now := time.Now()
	if err := os.Chtimes(s.recordPath(rec.ID), time.Time{}, now); err != nil {
		s.log.Warn("when the image was used is not recorded", "image", rec.ID, "err", err)
	}
	refs, err := s.refs(func(err error) { s.log.Warn("image name passed over", "err", err) })
	if err != nil {
		return Image{}, err
	}
	img, err := s.image(rec, refs[rec.ID])
	if err != nil {
		s.Unuse(by.ID)
	}
	return img, err
}

// writeUse records a user. That is not durable: Restore writes again what a power cut has taken.
func (s *Store) writeUse(by User) error {
	if by.ID == "" || strings.ContainsFunc(by.ID, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	}) {
		return fmt.Errorf("user %.80q of an image: %w", by.ID, errs.ErrInvalid)
	}
	u := use{Name: by.Name, Image: by.Image, Group: by.Group}
	session := filepath.Base(s.blobs.session)
	if !by.Lasting {
		u.Session = session
	}
	if by.Running {
		u.Running = session
	}
	data, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("record use of image: %w", err)
	}
	f, err := os.CreateTemp(s.blobs.session, "use-*")
	if err != nil {
		return fmt.Errorf("record use of image: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.usePath(by.ID, u.Session))
	}
	if err != nil {
		return fmt.Errorf("record use of image: %w", errors.Join(err, os.RemoveAll(f.Name())))
	}
	return nil
}

// Unuse ends what Use began. A user that is not known is no error.
func (s *Store) Unuse(id string) {
	if err := os.Remove(s.usePath(id, filepath.Base(s.blobs.session))); !errors.Is(err, fs.ErrNotExist) {
		s.removeUse(id, err)
		return
	}
	s.removeUse(id, os.Remove(s.usePath(id, "")))
}

func (s *Store) removeUse(id string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("image is kept longer than needed", "user", id, "err", err)
	}
}

// Run is Renew for a user that is about to run. An image that was removed by force meanwhile is errs.ErrNotFound.
func (s *Store) Run(ctx context.Context, by User) error {
	// Who removes the image looks before, and then it is gone, or after, and then it stays.
	_, end, err := s.beginRecords(ctx, false, false)
	if err != nil {
		return err
	}
	defer end()
	if _, err := os.Lstat(s.recordPath(by.Image)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s %w: it was removed by force: pull or load it again", by.Image, errs.ErrNotFound)
	}
	by.Running = true
	return s.writeUse(by)
}

// Renew changes what is known of a user, which needs the image already.
func (s *Store) Renew(by User) {
	if err := s.writeUse(by); err != nil {
		s.log.Warn("user of an image keeps its name", "user", by.ID, "err", err)
	}
}

// Restore makes the users of the groups that are ours those that are given, and no others but those that end with a
// Store. The owner of the groups calls it when it begins: it knows them, whatever a crash or a power cut has left here.
func (s *Store) Restore(ctx context.Context, ours func(group string) bool, users []User) error {
	_, end, err := s.beginRecords(ctx, false, false)
	if err != nil {
		return err
	}
	defer end()
	missing := make(map[string]User, len(users))
	for _, u := range users {
		missing[u.ID] = u
	}
	if err := s.eachUse(func(path, id string, u use, err error) {
		by, known := missing[id]
		switch {
		case err != nil || u.Session != "":
		case known && by.Lasting && !by.Running && u == (use{Name: by.Name, Image: by.Image, Group: by.Group}):
			delete(missing, id) // it is there as it should be
		case !known && ours(u.Group):
			s.removeUse(id, os.Remove(path))
		}
	}); err != nil {
		return err
	}
	for _, u := range missing {
		if err := s.writeUse(u); err != nil {
			return err
		}
	}
	return nil
}

// eachUse calls do for every record of a user, with errs.ErrCorrupt for one that cannot be read: a power cut may leave
// such, of users that ended with it or that Restore writes again.
func (s *Store) eachUse(do func(path, id string, u use, err error)) error {
	return s.eachFile("uses", func(path string) {
		var u use
		err := readJSON(path, &u, func() bool { return checkDigest(u.Image) == nil })
		if !errors.Is(err, fs.ErrNotExist) {
			id, _, _ := strings.Cut(filepath.Base(path), ".")
			do(path, id, u, err)
		}
	})
}

// Users returns who needs which image, in every process, sorted by name.
func (s *Store) Users(ctx context.Context) (map[digest.Digest][]User, error) {
	ctx, end, err := s.begin(ctx, false)
	if err != nil {
		return nil, err
	}
	defer end()
	return s.users(ctx)
}

func (s *Store) users(ctx context.Context) (map[digest.Digest][]User, error) {
	out, _, err := s.readUses(ctx)
	return out, err
}

// readUses returns the users by image, and the files of those that are none any more.
func (s *Store) readUses(ctx context.Context) (users map[digest.Digest][]User, dead []string, err error) {
	// Which sessions live is asked after the records were read: one that begins meanwhile has none of them.
	type read struct {
		path, id string
		use
	}
	var uses []read
	err = s.eachUse(func(path, id string, u use, err error) {
		if err != nil {
			s.log.Warn("user of an image passed over", "err", err)
			dead = append(dead, path)
			return
		}
		uses = append(uses, read{path, id, u})
	})
	if err != nil || len(uses) == 0 {
		return nil, dead, err
	}
	alive := map[string]bool{"": true}
	if err := s.blobs.sessions(ctx, func(dir string, lives bool) error {
		alive[filepath.Base(dir)] = lives
		return nil
	}); err != nil {
		return nil, nil, err
	}
	users = map[digest.Digest][]User{}
	for _, u := range uses {
		if !alive[u.Session] {
			dead = append(dead, u.path)
			continue
		}
		users[u.Image] = append(users[u.Image], User{
			ID: u.id, Name: u.Name, Image: u.Image, Group: u.Group, Lasting: u.Session == "", Running: u.Running != "" && alive[u.Running],
		})
	}
	for _, list := range users {
		slices.SortFunc(list, func(a, b User) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID)) })
	}
	return users, dead, nil
}

// sweepUses removes the records of users that ended with their process. The caller holds the lock of the records alone.
func (s *Store) sweepUses(ctx context.Context) error {
	_, dead, err := s.readUses(ctx)
	for _, path := range dead {
		s.removeUse(filepath.Base(path), os.Remove(path))
	}
	return err
}

// checkUnused returns errs.ErrInUse where containers need an image, and names them; with force only those that run count.
func (s *Store) checkUnused(ctx context.Context, id digest.Digest, force bool) error {
	users, err := s.users(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, u := range users[id] {
		if u.Running || !force {
			names = append(names, u.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	const most = 10
	list := strings.Join(names[:min(len(names), most)], ", ")
	if len(names) > most {
		list += fmt.Sprintf(" and %d more", len(names)-most)
	}
	if force {
		return fmt.Errorf("image %s: %w by the running containers %s: stop them first", id, errs.ErrInUse, list)
	}
	return fmt.Errorf("image %s: %w by the containers %s: remove those, or force it", id, errs.ErrInUse, list)
}
