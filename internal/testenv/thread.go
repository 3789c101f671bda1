package testenv

import (
	"errors"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is an OS thread with namespaces of its own. Functions run on it one at
// a time; a process started on it is born in its namespaces. The thread, and
// with it the namespaces that nobody else uses, ends with close.
type thread struct {
	calls chan func()
	ended chan struct{}
}

// newThread starts a thread that has left the namespaces named by flags
// (CLONE_NEWNS, CLONE_NEWNET).
func newThread(flags int) (*thread, error) {
	t := &thread{calls: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go t.run(flags, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *thread) run(flags int, ready chan<- error) {
	// Never unlocked: the thread ends with this goroutine, and no other
	// goroutine ever finds itself in these namespaces.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end. Hold it while another one is found.
		handedOver := make(chan struct{})
		go func() {
			defer close(handedOver)
			t.run(flags, ready)
		}()
		<-handedOver
		runtime.UnlockOSThread()
		return
	}
	// The thread shares its root and working directory with the others until
	// CLONE_FS parts them, which a mount namespace asks for.
	err := unix.Unshare(flags | unix.CLONE_FS)
	ready <- err
	if err != nil {
		return
	}
	for f := range t.calls {
		f()
	}
	close(t.ended)
}

// do runs f on the thread. f must not end its goroutine (no t.Fatal).
func (t *thread) do(f func() error) error {
	var err error
	done := make(chan struct{})
	select {
	case t.calls <- func() { defer close(done); err = f() }:
	case <-t.ended:
		return errors.New("testenv: the Host is closed")
	}
	<-done
	return err
}

// start starts a command in the thread's namespaces. A child asks the kernel
// to be killed when the thread ends.
func (t *thread) start(cmd *exec.Cmd) error {
	return t.do(cmd.Start)
}

func (t *thread) close() {
	close(t.calls)
	<-t.ended
}
