package port_test

import (
	"errors"
	"fmt"

	"github.com/gatekit/gatekit/pkg/port"
)

// Forwards as people write them. Ranges are as many forwards, and addresses stay as
// they were written.
func ExampleParse() {
	specs, err := port.Parse("[::1]:8080-8081:80-81/tcp")
	if err != nil {
		fmt.Println(err)
	}
	for _, s := range specs {
		fmt.Println(s.Proto, s.ParentIP, s.ParentPort, "to", s.ChildPort)
	}
	_, err = port.Parse("8080:80/sctp")
	fmt.Println(errors.Is(err, port.ErrInvalid))
	// Output:
	// tcp ::1 8080 to 80
	// tcp ::1 8081 to 81
	// true
}
