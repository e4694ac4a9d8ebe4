package house

// exceptions returns what a file may do all the same, and why.
func exceptions() map[string]map[string]string {
	return map[string]map[string]string{
		"config.go": {
			"os.Getenv": "the user's data directory is where the XDG variable says, as the documentation of DataDir does",
		},
		"boot/child.go": {
			"os.Environ": "the Go toolchain and apt get the caller's environment",
		},
		"internal/guest/box/init_linux.go": {
			"os/signal.Notify": "it is the whole of a container's init, which forwards signals",
			"os.Environ":       "the init's environment is that of the container's command",
		},
		"internal/image/imagetest/registry.go": {
			"log.New": "the registry takes no other logger; this one discards",
		},
		"internal/keychain/keychain.go": {
			"os.Getenv": "docker's configuration is where DOCKER_CONFIG says, as for every program that reads it",
		},
		"internal/needs/needs.go": {
			"os.Getenv": "it helps tests, which have no other way to be told whether they may be skipped",
		},
		"vm/qemu/binary.go": {
			"os.LookupEnv": "QEMU gets a few variables of the caller's environment, such as TMPDIR",
		},
	}
}

// excepted tells that there is an exception for what the file does.
func excepted(f *file, what string) bool { return exceptions()[f.path][what] != "" }

// helpsTests tells that a package is for the tests of users or of other packages.
func helpsTests(dir string) bool {
	switch dir {
	case "vm/vmtest", "agent/agenttest", "internal/image/imagetest", "internal/needs", "arcboxtest":
		return true
	}
	return false
}
