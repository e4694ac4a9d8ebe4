package api

// SetNetwork changes the interfaces of a container that was created.
var SetNetwork = Method[SetNetworkRequest, SetNetworkReply]{"network.set"}

// The modes of a network.
const (
	NetworkOwn       = ""          // a namespace of the container's own, with the interfaces that are named
	NetworkMachine   = "machine"   // that of the machine
	NetworkContainer = "container" // that of another container
)

// Network says how a container is connected.
type Network struct {
	Mode        string      `json:"mode,omitempty"`
	Container   string      `json:"container,omitempty"`  // id of the other one; one that has no process is ErrConflict
	Interfaces  []Interface `json:"interfaces,omitempty"` // beside the loopback interface
	Nameservers []string    `json:"nameservers,omitempty"`
}

// What the first interface of most containers is. A guest may make it before it is asked for.
const (
	FirstInterface = "eth0"
	FirstVLAN      = 2
	LargestMTU     = 65000 // bytes: what the machine's NIC takes
)

// Interface is a network interface of a container: a macvlan on a VLAN of the machine's NIC.
type Interface struct {
	Name      string   `json:"name"`
	VLAN      uint16   `json:"vlan"` // 1 to 4094
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu"`
	Addresses []string `json:"addresses"`          // with the length of the prefix
	Gateways  []string `json:"gateways,omitempty"` // of default routes
	Reflect   bool     `json:"reflect,omitempty"`  // frames to other containers of the machine go to the host too
}

// SetNetworkRequest adds interfaces and removes others. Those of a name that is there already have Reflect changed.
type SetNetworkRequest struct {
	ID     string      `json:"id"`
	Set    []Interface `json:"set,omitempty"`
	Remove []string    `json:"remove,omitempty"` // names
}

// SetNetworkReply is empty.
type SetNetworkReply struct{}
