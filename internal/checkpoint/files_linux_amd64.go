package checkpoint

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptor is an open file of a process.
type descriptor struct {
	fd    int
	link  string // what /proc/PID/fd says
	info  []field
	flags uint64
}

// field is a line of /proc/PID/fdinfo.
type field struct{ key, value string }

// get returns the value of a field, "" where there is none.
func (d *descriptor) get(key string) string {
	for _, f := range d.info {
		if f.key == key {
			return f.value
		}
	}
	return ""
}

// descriptors returns the open files of the process, by number.
func (t *tracer) descriptors() ([]descriptor, error) {
	names, err := os.ReadDir(t.proc("fd"))
	if err != nil {
		return nil, err
	}
	var all []descriptor
	for _, n := range names {
		var d descriptor
		if d.fd, err = strconv.Atoi(n.Name()); err != nil {
			return nil, err
		}
		if d.link, err = os.Readlink(t.proc("fd/" + n.Name())); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(t.proc("fdinfo/" + n.Name()))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			d.info = append(d.info, field{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
		if d.flags, err = strconv.ParseUint(d.get("flags"), 8, 32); err != nil {
			return nil, fmt.Errorf("flags of descriptor %d: %w", d.fd, err)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b descriptor) int { return cmp.Compare(a.fd, b.fd) })
	return all, nil
}

// inherited tells that this process has the same pipe or socket under the same number: its children got it without being meant.
func (d *descriptor) inherited() bool {
	own, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(d.fd))
	return err == nil && own == d.link && (strings.HasPrefix(own, "pipe:[") || strings.HasPrefix(own, "socket:["))
}

// The flags of an open file that fcntl sets.
const settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME

const atFDCWD = ^uint64(99)

// reopen adds the steps that open all files again but those that are given, and that of the memory.
func (s *script) reopen(all []descriptor, given int, memory string, memoryFD uint64) error {
	next := given // the lowest number that is free: all below are in use
	for _, d := range all {
		if d.fd < given {
			s.add(0, unix.SYS_FCNTL, uint64(d.fd), unix.F_SETFL, d.flags&settable)
			continue
		}
		switch {
		case d.link == memory:
			s.add(0, unix.SYS_DUP3, memoryFD, uint64(d.fd), unix.O_CLOEXEC)
		case d.inherited():
			continue
		default:
			if err := s.open(d); err != nil {
				return err
			}
			if next != d.fd {
				s.add(savedFirst, unix.SYS_DUP3, 0, uint64(d.fd), unix.O_CLOEXEC)
				s.add(savedFirst, unix.SYS_CLOSE)
			}
		}
		if next == d.fd {
			next++
		}
	}
	return s.watch(all, given)
}

// open adds the step that opens a file, and saves its descriptor.
func (s *script) open(d descriptor) error {
	number := func(key string, base int) (v uint64, err error) {
		if v, err = strconv.ParseUint(d.get(key), base, 64); err != nil {
			err = refused("descriptor %d, %s with %s %q", d.fd, d.link, key, d.get(key))
		}
		return v, err
	}
	flags := d.flags&unix.O_NONBLOCK | unix.O_CLOEXEC
	switch d.link {
	case "anon_inode:[eventfd]":
		count, err := number("eventfd-count", 16)
		if err != nil {
			return err
		}
		if count > 1<<32-1 {
			return refused("descriptor %d, an eventfd that counts %d", d.fd, count)
		}
		if d.get("eventfd-semaphore") == "1" {
			flags |= unix.EFD_SEMAPHORE
		}
		s.add(saves, unix.SYS_EVENTFD2, count, flags)
	case "anon_inode:[signalfd]":
		mask, err := number("sigmask", 16)
		if err != nil {
			return err
		}
		s.add(saves, unix.SYS_SIGNALFD4, ^uint64(0), s.words(mask), 8, flags)
	case epollLink:
		s.add(saves, unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC)
	case os.DevNull, "/dev/urandom", "/dev/random":
		s.openPath(d.link, d.flags)
	default:
		return refused("descriptor %d, %s", d.fd, d.link)
	}
	return nil
}

func (s *script) openPath(path string, flags uint64) {
	s.add(saves, unix.SYS_OPENAT, atFDCWD, s.text(path), flags|unix.O_CLOEXEC, 0)
}

const epollLink = "anon_inode:[eventpoll]"

// watch adds the steps that tell each epoll what to watch.
func (s *script) watch(all []descriptor, given int) error {
	for _, d := range all {
		if d.link != epollLink {
			continue
		}
		if d.fd < given {
			return refused("descriptor %d, an epoll that its parent made", d.fd)
		}
		for _, f := range d.info {
			var fd, events, data uint64
			if f.key != "tfd" {
				continue
			}
			if _, err := fmt.Sscanf(f.value, "%d events: %x data: %x", &fd, &events, &data); err != nil || events > 1<<32-1 {
				return refused("descriptor %d, an epoll that watches %q", d.fd, f.value)
			}
			s.add(0, unix.SYS_EPOLL_CTL, uint64(d.fd), unix.EPOLL_CTL_ADD, fd, s.put(epollEvent(uint32(events), data), 8))
		}
	}
	return nil
}

// epollEvent is struct epoll_event, which is packed on amd64.
func epollEvent(events uint32, data uint64) []byte {
	le := binary.LittleEndian
	return le.AppendUint64(le.AppendUint32(nil, events), data)
}
