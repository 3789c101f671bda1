package builtin

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

// sendUrgent sends bytes of which the last is urgent.
func sendUrgent(t testing.TB, c *net.TCPConn, text string) {
	t.Helper()
	if err := control(c, func(fd int) error {
		return unix.Sendto(fd, []byte(text), unix.MSG_OOB, nil)
	}); err != nil {
		t.Fatal(err)
	}
}

// urgentByte waits for a byte out of band: the socket does not have it in line.
func urgentByte(c *net.TCPConn) (text string, err error) {
	buf := make([]byte, 1)
	testenv.Eventually(testenv.Patience, func() bool {
		err = control(c, func(fd int) error {
			_, _, err := unix.Recvfrom(fd, buf, unix.MSG_OOB|unix.MSG_DONTWAIT)
			return err
		})
		return err == nil
	})
	return string(buf), err
}

// Urgent data is a mark in the stream. It arrives as such, out of band or in line
// as the service likes it, and all around it arrives too.
func TestUrgentDataIsCarriedInItsPlace(t *testing.T) {
	const before, after = "before the mark", "after the mark"
	say := func(t testing.TB, c *net.TCPConn) {
		fmt.Fprint(c, before)
		sendUrgent(t, c, "!")
		fmt.Fprint(c, after)
		_ = c.CloseWrite()
	}
	hear := func(c *net.TCPConn, inLine bool) string {
		if !inLine {
			first := make([]byte, len(before))
			if _, err := io.ReadFull(c, first); err != nil {
				return err.Error()
			}
			urgent, err := urgentByte(c)
			rest, rerr := io.ReadAll(c)
			return fmt.Sprintf("%s %s %v %s %v", first, urgent, err, rest, rerr)
		}
		if err := control(c, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		}); err != nil {
			return err.Error()
		}
		first := make([]byte, len(before))
		if _, err := io.ReadFull(c, first); err != nil {
			return err.Error()
		}
		marked := testenv.Eventually(testenv.Patience, func() (at bool) {
			_ = control(c, func(fd int) error { at = linux.AtMark(fd); return nil })
			return at
		})
		rest, err := io.ReadAll(c)
		return fmt.Sprintf("%s %v %s %v", first, marked, rest, err)
	}
	want := map[bool]string{
		true:  before + " true !" + after + " <nil>",
		false: before + " ! <nil> " + after + " <nil>",
	}
	d := start(t, Options{})
	for _, inLine := range []bool{false, true} {
		t.Run(fmt.Sprintf("to the service, in line %v", inLine), func(t *testing.T) {
			heard := make(chan string, 1)
			service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) { heard <- hear(c, inLine) })
			say(t, dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service)))
			if got := <-heard; got != want[inLine] {
				t.Errorf("the service hears\n%q, want\n%q", got, want[inLine])
			}
		})
		t.Run(fmt.Sprintf("to the client, in line %v", inLine), func(t *testing.T) {
			service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
				say(t, c)
				_, _ = io.Copy(io.Discard, c)
			})
			c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
			if got := hear(c, inLine); got != want[inLine] {
				t.Errorf("the client hears\n%q, want\n%q", got, want[inLine])
			}
		})
	}
}

// A connection goes on after urgent data, both ways, and also when all that it
// brought was the mark.
func TestAConnectionGoesOnAfterUrgentData(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_ = control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // not by splice, which would stop
		_ = c.CloseWrite()
	})
	c := dialTCP(t, forwardTo(t, d, "tcp", "127.0.0.1", service))
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	for range 3 {
		sendUrgent(t, c, "!")
		got := make([]byte, 1)
		if _, err := io.ReadFull(c, got); err != nil || got[0] != '!' {
			t.Fatalf("got %q, %v", got, err)
		}
		roundTrip(t, c, "hello")
	}
	sendUrgent(t, c, "bye!")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye!" {
		t.Errorf("before its end the stream had %q, %v", got, err)
	}
}

// To splice(2), a mark that is followed by the end looks like the end.
func TestAMarkBeforeTheEndIsNoEnd(t *testing.T) {
	ready := make(chan *end, 1)
	done := make(chan struct{})
	defer close(done)
	service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_ = control(c, func(fd int) error { return linux.TuneTCP(fd, linux.KeepAlive{Count: 1}) })
		_, _ = c.Read(make([]byte, 1)) // "x"
		file, err := c.File()
		if err != nil {
			t.Error(err)
			close(ready)
			return
		}
		defer file.Close()
		e, err := newEnd(file)
		if err != nil {
			t.Error(err)
		}
		testenv.Eventually(testenv.Patience, func() bool { // the end has come
			var info *unix.TCPInfo
			_ = control(file, func(fd int) (err error) {
				info, err = unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
				return err
			})
			return info != nil && info.State == closeWait
		})
		ready <- e
		<-done
	})
	c := dialTCP(t, service.String())
	fmt.Fprint(c, "x")
	sendUrgent(t, c, "!")
	_ = c.CloseWrite()
	from := <-ready
	if from == nil {
		return
	}
	var pipes carriers
	defer pipes.close()
	s := newStream(&pipes, from, from)
	some, err := s.receive()
	if m, ok := s.held.(*memory); !some || err != nil || !ok || !m.urgent {
		t.Errorf("at the mark there is %v, %v by %T, want urgent data", some, err, s.held)
	}
	s.n = 0
	if some, err := s.receive(); some || err != nil {
		t.Errorf("at the end there is %v, %v", some, err)
	}
	s.drop()
}

// closeWait is TCP_CLOSE_WAIT of linux/tcp_states.h.
const closeWait = 8
