package box

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	rosettaDir = "/run/r" // where the file system with the translator is mounted
	translator = rosettaDir + "/rosetta"
	formatsDir = "/proc/sys/fs/binfmt_misc"
)

// rosetta lets the kernel run programs for amd64 by a translator that the host shares.
type rosetta struct {
	shared

	mu   sync.Mutex
	done bool
}

// UseRosetta lets programs for amd64 run by the program rosetta in a file system: source is mounted as kind. prepare is as
// for UseFiles, and loads binfmt_misc too. UseRosetta is called before Ready.
func (b *Box) UseRosetta(kind, source string, prepare func() error) {
	r := &b.rosetta
	r.dir, r.kind, r.source, r.prepare = rosettaDir, kind, source, prepare
	r.flags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID
}

// format is the line that tells the kernel of executables for amd64, as binfmt_misc takes it: the first bytes of an ELF
// file, and which bits of them count. The translator is opened now (F), as containers do not have it in their roots, and
// gets the credentials of the program (C).
const format = `:rosetta:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00` +
	`:\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:` + translator + `:CF`

// register tells the kernel of the translator, once, where there is one.
func (r *rosetta) register() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kind == "" || r.done {
		return nil
	}
	if err := r.shared.mount(); err != nil {
		return fmt.Errorf("prepare for programs for amd64: %w", err)
	}
	if err := unix.Mount("binfmt_misc", formatsDir, "binfmt_misc", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil && err != unix.EBUSY {
		return fmt.Errorf("prepare for programs for amd64: mount %s: %w", formatsDir, err)
	}
	err := os.WriteFile(formatsDir+"/register", []byte(format), 0)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("prepare for programs for amd64: %w", err)
	}
	r.done = true
	return nil
}
