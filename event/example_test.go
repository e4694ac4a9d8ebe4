package event_test

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/event"
)

func ExampleBus() {
	var bus event.Bus
	events := bus.Subscribe(context.Background(), event.SubscribeOptions{
		Kinds: []event.Kind{event.ContainerStarted, event.ContainerExited},
	})
	bus.Publish(event.Event{Kind: event.ContainerCreated, Name: "web"})
	bus.Publish(event.Event{Kind: event.ContainerStarted, Name: "web"})
	bus.Publish(event.Event{Kind: event.ContainerExited, Name: "web", Attributes: map[string]string{event.AttrExitCode: "0"}})
	bus.Close()
	for e := range events {
		fmt.Printf("%d %s %s %q\n", e.Seq, e.Kind, e.Name, e.Attributes[event.AttrExitCode])
	}
	// Output:
	// 2 container.started web ""
	// 3 container.exited web "0"
}
