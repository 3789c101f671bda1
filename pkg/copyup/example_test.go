package copyup_test

import (
	"errors"
	"fmt"

	"github.com/gatekit/gatekit/pkg/copyup"
)

// What can never work is known before there is a namespace for Do.
func ExampleValidate() {
	fmt.Println(copyup.Validate([]string{"/etc", "/run"}, copyup.ModeSymlink))
	fmt.Println(errors.Is(copyup.Validate([]string{"/tmp"}, copyup.ModeSymlink), copyup.ErrUsage))
	// Output:
	// <nil>
	// true
}
