package linux

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNetwork runs f in another network namespace, and returns what f returned.
// Sockets that f makes itself, and not by a goroutine of its own, and what it reads
// below /proc/sys/net are of that namespace. The caller has CAP_SYS_ADMIN in its own
// user namespace and in that which owns the other.
func InNetwork(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer own.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- os.NewSyscallError("setns "+ns.Name(), err)
			return
		}
		err = f()
		// A thread that cannot come back stays locked, and ends with this
		// goroutine.
		if back := os.NewSyscallError("setns", unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)); back != nil {
			err = errors.Join(err, back)
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
