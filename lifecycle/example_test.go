package lifecycle_test

import (
	"context"
	"fmt"

	"github.com/arcboxlabs/arcbox-go/lifecycle"
)

// server is a target that ends only when it is told to.
type server struct{ done chan struct{} }

func (s *server) Done() <-chan struct{} { return s.done }
func (s *server) Err() error            { return nil }
func (s *server) Shutdown(context.Context) error {
	close(s.done)
	return nil
}

func ExampleSupervisor() {
	s := lifecycle.New(lifecycle.Options[*server]{
		Start:   func(context.Context) (*server, error) { return &server{done: make(chan struct{})}, nil },
		OnState: func(t lifecycle.Transition) { fmt.Println(t.From, "->", t.To) },
	})
	_, release, err := s.Acquire(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	release() // five minutes later it would stop
	if err := s.Close(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// stopped -> starting
	// starting -> ready
	// ready -> stopping
	// stopping -> closed
}
