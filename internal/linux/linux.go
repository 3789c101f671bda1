// Package linux is the only room with raw system calls, unsafe, ioctls and
// loops over EINTR: namespaces, mounts, the TAP, processes and signals. A file
// is named for its subject. Errors name the call. It knows nothing of gates.
package linux

import "golang.org/x/sys/unix"

// retry calls f until it is not interrupted by a signal.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
