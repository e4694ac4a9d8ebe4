// Helper is a process to be saved: it has threads, timers, signal handlers and memory of several kinds, and does what it is
// told over the socket that is its descriptor 3. Its arguments are a file that it maps shared and one that it maps privately.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const socket = 3

func main() {
	h := &helper{start: time.Now(), signals: make(chan os.Signal, 1), ask: make(chan chan int)}
	for range 1024 * unix.Getpagesize() / 16 {
		h.big = append(h.big, "0123456789abcdef"...)
	}
	h.shared = mapFile(os.Args[1], unix.MAP_SHARED)
	h.private = mapFile(os.Args[2], unix.MAP_PRIVATE)
	copy(h.private[unix.Getpagesize():], "written")
	signal.Notify(h.signals, unix.SIGUSR1)
	for i := range threads {
		go func() {
			runtime.LockOSThread()
			for c := range h.ask {
				c <- i
			}
		}()
	}
	time.Sleep(time.Millisecond) // the runtime now has what it needs for timers
	for {
		line, ok := h.read()
		if !ok {
			return
		}
		verb, arg, _ := strings.Cut(line, " ")
		h.write(h.do(verb, arg))
	}
}

const threads = 4

type helper struct {
	shared, private []byte
	memory          string
	start           time.Time
	signals         chan os.Signal
	ask             chan chan int
	pending         []byte
	kept            []*os.File
	big             []byte
}

func mapFile(path string, flags int) []byte {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4*unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		panic(err)
	}
	return b
}

// read returns the next line. It waits in poll.
func (h *helper) read() (string, bool) {
	for {
		if line, rest, ok := strings.Cut(string(h.pending), "\n"); ok {
			h.pending = []byte(rest)
			return line, true
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: socket, Events: unix.POLLIN}}, -1); err != nil {
			continue
		}
		b := make([]byte, 1024)
		n, err := unix.Read(socket, b)
		if err != nil || n == 0 {
			return "", false
		}
		h.pending = append(h.pending, b[:n]...)
	}
}

func (h *helper) write(answer any) { unix.Write(socket, fmt.Appendln(nil, answer)) }

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// do does a command and returns the answer.
func (h *helper) do(verb, arg string) any {
	switch verb {
	case "remember":
		h.memory = strings.Clone(arg)
	case "recall":
		return h.memory
	case "poke": // into the shared memory
		clear(h.shared[:64])
		copy(h.shared, arg)
	case "peek":
		return text(h.shared[:64])
	case "file": // mapped privately: as it is on disk, and as the process has written it
		n := unix.Getpagesize()
		return text(h.private[:16]) + " " + text(h.private[n:n+16])
	case "threads":
		sum := 0
		answers := make(chan int, threads)
		for range threads {
			h.ask <- answers
			sum += <-answers
		}
		return sum >= 0
	case "timer":
		<-time.After(5 * time.Millisecond)
		return time.Since(h.start) > 5*time.Millisecond && time.Since(h.start) < time.Hour
	case "signal":
		unix.Kill(os.Getpid(), unix.SIGUSR1)
		return <-h.signals
	case "grow":
		h.memory = strings.Repeat(arg, 10<<20)
		runtime.GC()
		s := len(h.memory)
		h.memory = arg
		return s
	case "touch":
		for i := 0; i < len(h.big); i += unix.Getpagesize() {
			h.big[i]++
		}
	case "name":
		b, _ := os.ReadFile("/proc/self/comm")
		return strings.TrimSpace(string(b))
	case "socket":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	case "open":
		return h.open(arg)
	case "spin":
		go func() {
			for {
				runtime.Gosched()
			}
		}()
	case "exit":
		os.Exit(7)
	default:
		return "unknown"
	}
	return "ok"
}

// open has the process have something that cannot be saved.
func (h *helper) open(what string) any {
	var err error
	switch what {
	case "file":
		var f *os.File
		f, err = os.Open(os.Args[2])
		h.kept = append(h.kept, f)
	case "pipe":
		err = unix.Pipe(make([]int, 2))
	case "socket":
		_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	case "timerfd":
		_, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	case "shared memory":
		_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	case "memory without end":
		_, err = unix.Mmap(-1, 0, 128<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	case "semaphore":
		_, err = unix.Eventfd(3, unix.EFD_SEMAPHORE)
	case "random":
		_, err = unix.Open("/dev/urandom", unix.O_RDONLY, 0)
	}
	if err != nil {
		return err
	}
	return "ok"
}
