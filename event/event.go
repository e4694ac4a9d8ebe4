// Package event tells what happens to the nouns of arcbox. A Bus copies every event that is published on it to every
// subscriber, each over one channel to range over:
//
//	for e := range bus.Subscribe(ctx, event.SubscribeOptions{}) {
//		fmt.Println(e.Kind, e.ID)
//	}
//
// Publishing never waits for a reader. A reader that falls behind by more than its queue loses the oldest events, and
// finds one event of kind Lost in their place, which says how many they were.
package event

import "time"

// Kind says what happened, as "noun.verb".
type Kind string

// The kinds for containers. ID is the container's, Name its name, Image the reference it was made from, and Machine the
// machine it runs in.
const (
	ContainerCreated Kind = "container.created"
	ContainerStarted Kind = "container.started"
	ContainerExited  Kind = "container.exited" // with AttrExitCode, and AttrSignal where a signal ended it
	ContainerOOM     Kind = "container.oom"    // the guest's kernel killed a process of it for lack of memory
	ContainerRemoved Kind = "container.removed"
	ContainerPaused  Kind = "container.paused"
	ContainerResumed Kind = "container.resumed"
	ContainerRenamed Kind = "container.renamed"       // with AttrOldName
	ContainerUpdated Kind = "container.updated"       // its limits or its restart policy
	ContainerHealth  Kind = "container.health_status" // its health has changed; with AttrHealth
	ExecStarted      Kind = "exec.started"            // a command was executed in it; with AttrExecID
)

// The kinds for images. ID is the image's digest and Image the reference.
const (
	ImagePulled    Kind = "image.pulled"
	ImagePushed    Kind = "image.pushed"
	ImageLayer     Kind = "image.layer" // a layer is further in a pull or push; with AttrLayer, AttrState, AttrDone and AttrTotal, without ID
	ImageLoaded    Kind = "image.loaded"
	ImageImported  Kind = "image.imported"
	ImageCommitted Kind = "image.committed"
	ImageBuilt     Kind = "image.built"
	ImageTagged    Kind = "image.tagged"
	ImageUntagged  Kind = "image.untagged"
	ImageRemoved   Kind = "image.removed"
)

// The kinds for networks. ID is the network's and Name its name.
const (
	NetworkCreated Kind = "network.created"
	NetworkRemoved Kind = "network.removed"
)

// The kinds for volumes. Name is the volume's name.
const (
	VolumeCreated Kind = "volume.created"
	VolumeRemoved Kind = "volume.removed"
)

// The kinds for machines. Machine is the machine's name. AttrError tells why, where there is a reason.
const (
	MachineStarting Kind = "machine.starting"
	MachineBooting  Kind = "machine.booting" // kernel and initramfs are there, the hypervisor is started
	MachineReady    Kind = "machine.ready"
	MachineStopping Kind = "machine.stopping"
	MachineStopped  Kind = "machine.stopped"
	MachineCrashed  Kind = "machine.crashed" // it ended without being asked to
	MachineFailed   Kind = "machine.failed"  // it did not start
	MachineCreated  Kind = "machine.created"
	MachineUpdated  Kind = "machine.updated"
	MachineRemoved  Kind = "machine.removed"
	MachinePaused   Kind = "machine.paused"
	MachineResumed  Kind = "machine.resumed"
	MachineSnapshot Kind = "machine.snapshot" // it was saved; ID and Name are the snapshot's, as with the kind after it
	SnapshotRemoved Kind = "snapshot.removed"
)

// Lost stands for events that a slow reader missed. Dropped says how many; Seq and Time are those of the last of them.
const Lost Kind = "lost"

// The keys of Event.Attributes that arcbox sets itself.
const (
	AttrExitCode = "exit_code" // decimal
	AttrSignal   = "signal"    // name without SIG
	AttrError    = "error"     // text
	AttrOldName  = "old_name"  // of a renamed container
	AttrHealth   = "health"    // starting, healthy or unhealthy
	AttrExecID   = "exec_id"   // of a process in a container
	AttrLayer    = "layer"     // digest
	AttrState    = "state"     // waiting, running, done, exists or mounted
	AttrDone     = "done"      // bytes, decimal
	AttrTotal    = "total"     // bytes, decimal
	AttrRetryIn  = "retry_in"  // as time.Duration prints it: a new start follows after this time
)

// Event is one thing that happened. Fields that say nothing about a kind are zero.
type Event struct {
	Seq        uint64            // order on the bus, from 1; readers see it rise, with gaps where their filter left events out
	Time       time.Time         // when it was published
	Kind       Kind              // what happened
	ID         string            // of the container or image
	Name       string            // of the container, volume or network
	Machine    string            // name of the machine
	Image      string            // reference of the image
	Attributes map[string]string // more, by key; a reader's own copy
	Dropped    int               // with kind Lost: how many events the reader missed, counting only kinds it asked for
}
