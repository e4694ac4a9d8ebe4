package qemu

const ownerArg = "-qemu-test-owner"

func owner(args []string) {}
