package linux

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPipePair returns a pipe whose ends are closed with the test.
func newPipePair(t *testing.T) (r, w int) {
	t.Helper()
	p, err := NewPipe(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p.r, p.w
}

func newEpoll(t *testing.T) *Epoll {
	t.Helper()
	e, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestEpollReportsADescriptorUntilItIsNoLongerReady(t *testing.T) {
	e := newEpoll(t)
	r, w := newPipePair(t)
	const token = 1<<40 + 7
	if err := e.Add(r, token, unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	ready := make([]Ready, 4)
	waited := make(chan int, 1)
	go func() {
		n, _ := e.Wait(ready)
		waited <- n
	}()
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n := <-waited; n != 1 || ready[0].Token != token || ready[0].Events != unix.EPOLLIN {
		t.Fatalf("got %d: %+v", n, ready[0])
	}
	// The byte is still there: level-triggered.
	if n, err := e.Wait(ready); n != 1 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	for _, quiet := range []struct {
		name string
		call func() error
	}{
		{"modified to no events", func() error { return e.Modify(r, token, 0) }},
		{"deleted", func() error { return e.Delete(r) }},
	} {
		if err := quiet.call(); err != nil {
			t.Fatalf("%s: %v", quiet.name, err)
		}
		e.Wake()
		if n, err := e.Wait(ready); n != 0 || err != nil {
			t.Errorf("%s: got %d, %v", quiet.name, n, err)
		}
	}
}

func TestEpollWaitReturnsWhenItIsWoken(t *testing.T) {
	e := newEpoll(t)
	waited := make(chan error, 1)
	go func() {
		n, err := e.Wait(make([]Ready, 1))
		if n != 0 {
			t.Errorf("got %d events", n)
		}
		waited <- err
	}()
	e.Wake()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
}

func TestEpollWaitReturnsAtItsDeadline(t *testing.T) {
	e := newEpoll(t)
	for range 2 { // a deadline that has passed stays
		if err := e.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := e.Wait(make([]Ready, 1)); n != 0 || err != nil {
			t.Fatalf("got %d, %v", n, err)
		}
	}
	if err := e.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	e.Wake()
	if n, err := e.Wait(make([]Ready, 1)); n != 0 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
}

func TestEpollWaitAllocatesNothing(t *testing.T) {
	e := newEpoll(t)
	r, w := newPipePair(t)
	if err := e.Add(r, 1, unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	ready := make([]Ready, 4)
	if n := testing.AllocsPerRun(100, func() { _, _ = e.Wait(ready) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEpollPollDoesNotWait(t *testing.T) {
	e := newEpoll(t)
	r, w := newPipePair(t)
	ready := make([]Ready, 4)
	if err := e.Add(r, 7, unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Poll(ready); n != 0 || err != nil {
		t.Fatalf("nothing is ready: got %d, %v", n, err)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Poll(ready); n != 1 || err != nil || ready[0].Token != 7 {
		t.Fatalf("got %d, %v: %+v", n, err, ready[0])
	}
}

// Yield lets Go's poller be asked, and neither waits for more than that nor loses
// what was ready already.
func TestEpollYieldReturnsWhatIsReadyAndWhenNothingIs(t *testing.T) {
	e := newEpoll(t)
	r, w := newPipePair(t)
	ready := make([]Ready, 4)
	if n, err := e.Yield(ready); n != 0 || err != nil {
		t.Fatalf("nothing is ready: got %d, %v", n, err)
	}
	if err := e.Add(r, 7, unix.EPOLLIN); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := e.Poll(ready); n != 1 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	for range 3 {
		if n, err := e.Yield(ready); n != 1 || err != nil || ready[0].Token != 7 {
			t.Fatalf("got %d, %v: %+v", n, err, ready[0])
		}
	}
}

// Who wakes a set does not know that it was closed. The number of what woke it may be
// another descriptor's by then.
func TestEpollThatIsClosedWritesToNoOthersDescriptor(t *testing.T) {
	e, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	r, w := newPipePair(t)
	number := e.wake
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	heir, err := unix.FcntlInt(uintptr(w), unix.F_DUPFD_CLOEXEC, number)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(heir)
	if heir != number {
		t.Fatalf("descriptor %d is in use: got %d", number, heir)
	}
	e.Wake()
	if n, err := unix.Read(r, make([]byte, 8)); err != unix.EAGAIN {
		t.Errorf("read %d bytes, %v: want nothing", n, err)
	}
}
