// Command probe runs in containers of the tests and tries what busybox cannot. It prints one line for each thing it tried.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if strings.HasSuffix(os.Args[0], "/rosetta") { // it stands in for the translator of programs for amd64
		fmt.Println("translate", strings.Join(os.Args[1:], " "))
		return
	}
	switch os.Args[1] {
	case "vsock": // the agent's port, over loopback
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: 1024})
		}
		if err != nil {
			fmt.Println("connect:", err)
			return
		}
		// A request that any stream of the host would get an answer to.
		const ping = "\x01\x00\x00\x00\x1b" + `{"method":"ping","body":{}}`
		unix.Write(fd, []byte(ping))
		n, err := unix.Read(fd, make([]byte, 1))
		fmt.Println("answer:", n > 0, err)
	case "caps":
		b, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Cap") {
				fmt.Print(line)
			}
		}
	case "fds":
		for fd := range 1024 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				// The Go runtime opens some of its own, all with close-on-exec.
				fmt.Print(fd, " ")
			}
		}
	case "child": // a grandchild that stays and keeps stdout
		cmd := exec.Command("/proc/self/exe", "hang")
		cmd.Stdout = os.Stdout
		fmt.Println(cmd.Start())
	case "hang":
		select {}
	case "signals":
		var set unix.Sigset_t
		unix.PthreadSigmask(unix.SIG_SETMASK, nil, &set)
		fmt.Println(set.Val[0])
	case "eat": // all memory
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "calls": // those that a seccomp filter is about
		try := func(name string, nr uintptr, args ...uintptr) {
			var a [6]uintptr
			copy(a[:], args)
			_, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
			fmt.Println(name, unix.ErrnoName(e))
		}
		try("mount", unix.SYS_MOUNT)
		try("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
		try("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(0))
		try("clone3", unix.SYS_CLONE3)
		try("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
		try("unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)
	case "exit":
		os.Exit(42)
	}
}
