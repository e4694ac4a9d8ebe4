package box

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// oomWatch learns from the kernel when it has killed a process of a container for lack of memory: the memory events of
// each cgroup are a file, and changes of files are read from one descriptor.
type oomWatch struct {
	report func(id string)

	mu   sync.Mutex
	file *os.File              // nil before open and after close
	fd   int                   // of file
	all  map[int32]*oomCounter // by watch
	done chan struct{}         // closed when run has ended
}

// oomCounter tells of the kills of one container, each change once.
type oomCounter struct {
	id     string
	cgroup cgroup
	watch  *oomWatch
	number int32 // of the watch, negative where there is none

	mu   sync.Mutex
	told uint64
}

// open begins to watch.
func (w *oomWatch) open() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch for lack of memory: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fd, w.file = fd, os.NewFile(uintptr(fd), "inotify")
	w.all, w.done = make(map[int32]*oomCounter), make(chan struct{})
	go w.run(w.file)
	return nil
}

// close ends watching, and returns then.
func (w *oomWatch) close() {
	w.mu.Lock()
	file := w.file
	w.file = nil
	w.mu.Unlock()
	if file != nil {
		file.Close()
		<-w.done
	}
}

// add watches a cgroup. Where the kernel does not account memory there is nothing to watch.
func (w *oomWatch) add(id string, g cgroup) *oomCounter {
	c := &oomCounter{id: id, cgroup: g, watch: w, number: -1}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return c
	}
	if n, err := unix.InotifyAddWatch(w.fd, g.dir+"/memory.events", unix.IN_MODIFY); err == nil {
		c.number = int32(n)
		w.all[c.number] = c
	}
	return c
}

// close ends the watch of a container. The kernel forgets it with the cgroup.
func (c *oomCounter) close() {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.all[c.number] == c {
		delete(c.watch.all, c.number)
		if c.watch.file != nil {
			_, _ = unix.InotifyRmWatch(c.watch.fd, uint32(c.number))
		}
	}
}

// check reports kills that were not reported yet.
func (c *oomCounter) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.cgroup.oomKills(); n > c.told {
		c.told = n
		c.watch.report(c.id)
	}
}

// run reads events until the file is closed.
func (w *oomWatch) run(file *os.File) {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		n, err := file.Read(buf)
		if err != nil {
			return
		}
		// struct inotify_event: watch, mask, cookie, length of the name that follows.
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			number := int32(binary.NativeEndian.Uint32(b))
			b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
			w.mu.Lock()
			c := w.all[number]
			w.mu.Unlock()
			if c != nil {
				c.check()
			}
		}
	}
}
