// Package guest is what runs in the virtual machine: the agent, which is the guest's first process. Main is the whole
// agent: it boots the guest, opens the transports and serves the methods of agent/api.
package guest
