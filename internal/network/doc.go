// Package network is the network of the containers, inside the caller's process. Nothing of the host's own network is
// changed, and no right is needed for it.
//
// Each machine has one NIC, whose frames come to the host over a stream: a Port. Each network is a VLAN on that NIC. On the
// host a segment joins the ports of one network: it knows which container is where, since a Manager gives out the
// addresses, and so it neither learns nor floods more than it must, and takes no frame under an address that is another's.
// One member of a segment is its gateway: a TCP/IP stack in this process that answers DNS, opens connections to containers
// for Dial and for published ports, and ends every connection that a container opens to the outside, to go on with it by a
// dial function in Go.
//
// A queue for each port drops what a machine does not take, so that one which has stopped reading slows nobody else down.
package network
