package slirp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/gatekit/gatekit/internal/testenv"
)

// relaysOf counts the host sockets that are watched, and not the TAP.
func relaysOf(r *rig) int {
	n := 0
	for _, l := range r.e.loops {
		l.mu.Lock()
		for _, w := range l.watchers {
			if w != watcher(r.e.link) {
				n++
			}
		}
		l.mu.Unlock()
	}
	return n
}

// nothingLeft waits until the engine has no connection any more, in any state.
func (r *rig) nothingLeft() {
	r.t.Helper()
	testenv.Until(r.t, "the relays to end", func() bool { return relaysOf(r) == 0 })
	testenv.Until(r.t, "the connections to end", func() bool { return len(r.relays()) == 0 })
}

// probeSoon has half-open connections probed at once.
func probeSoon(e *engine) {
	e.tcp.halfOpen = 50 * time.Millisecond
}

// A guest that has closed its socket and not only its half is not waited for,
// however long the host's side says nothing.
func TestTCPGuestThatIsGoneIsFoundOut(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: probeSoon})
	linger := tcpip.TCPLingerTimeoutOption(10 * time.Millisecond)
	must(t, r.guest.SetTransportProtocolOption(tcp.ProtocolNumber, &linger))
	release := make(chan struct{})
	server := listen(t, "127.0.0.1:0", func(*net.TCPConn) { <-release })
	defer close(release)
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the relay", func() bool { return relaysOf(r) == 1 })
	c.Close()
	r.nothingLeft()
}

// The same for a peer on the host's side.
func TestTCPHostThatIsGoneIsFoundOut(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: probeSoon})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_LINGER2, 1)
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read: %v, want the end of the stream", err)
	}
	r.nothingLeft()
}

// One that goes on to listen after the end of its half stays for as long as it
// likes.
func TestTCPHalfClosedConnectionIsNotCutOff(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, tweak: probeSoon})
	answer := make(chan struct{})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		<-answer
		c.Write([]byte("late"))
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.CloseWrite()
	before := r.e.dev.sent.Load()
	testenv.Until(t, "the guest to be probed", func() bool { return r.e.dev.sent.Load() >= before+3 })
	close(answer)
	if got, err := io.ReadAll(c); err != nil || string(got) != "late" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTCPBothSidesCloseAtOnce(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		start := make(chan struct{})
		server := listen(t, local, func(*net.TCPConn) { <-start })
		var conns []*gonet.TCPConn
		for range 20 {
			c, err := r.dial(r.gateway(server))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		close(start)
		for _, c := range conns {
			c.Close()
		}
		r.nothingLeft()
	})
}

// Connections that end in all ways and orders, many at once, leave nothing.
func TestTCPManyEndsLeaveNothing(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		switch b[0] {
		case 0:
			c.SetLinger(0)
		case 1:
			io.Copy(io.Discard, c)
		}
	})
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			c, err := r.dial(r.gateway(server))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Write([]byte{byte(i % 3)})
			if i%2 == 0 && i%3 != 1 {
				c.Read(make([]byte, 1)) // the server's end
			}
		})
	}
	wg.Wait()
	r.nothingLeft()
}

// A client that uses its port again is not made to wait because the server was
// first to close.
func TestTCPPortIsUsedAgainAtOnce(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	server := listen(t, "127.0.0.1:0", func(*net.TCPConn) {})
	local, proto := fullAddress(netip.AddrPortFrom(r.net.subnets[0].child, 4000))
	remote, _ := fullAddress(r.gateway(server))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range 50 {
		var c *gonet.TCPConn
		testenv.Until(t, "the guest's own stack to be done with the port", func() bool {
			var err error
			c, err = gonet.DialTCPWithBind(ctx, r.guest, local, remote, proto)
			return err == nil || ctx.Err() != nil
		})
		if ctx.Err() != nil {
			t.Fatal("the connections are made to wait")
		}
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read: %v, want the end of the stream", err)
		}
		c.Close()
	}
}

// Nor is one that has reset its connection, of which the server has not read all yet.
func TestTCPPortOfAResetIsUsedAgainAtOnce(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	done := make(chan struct{})
	server := listen(t, "127.0.0.1:0", func(*net.TCPConn) { <-done })
	defer close(done)
	local, proto := fullAddress(netip.AddrPortFrom(r.net.subnets[0].child, 4000))
	remote, _ := fullAddress(r.gateway(server))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	first, err := gonet.DialTCPWithBind(ctx, r.guest, local, remote, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	one := r.theRelay()
	go func() {
		for err := error(nil); err == nil; {
			_, err = first.Write(make([]byte, 1<<16))
		}
	}()
	testenv.Until(t, "the host's socket to be full", func() bool { return r.isTrue(func() bool { return one.hostBlocked }) })
	r.resetGuest()
	testenv.Until(t, "the reset", func() bool { return r.isTrue(func() bool { return one.guestGone }) })
	second, err := gonet.DialTCPWithBind(ctx, r.guest, local, remote, proto)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// Urgent data is nothing but bytes in their place.
func TestTCPUrgentDataStaysInTheStream(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Error(err)
			return
		}
		c.Write([]byte("before "))
		var sendErr error
		err = raw.Write(func(fd uintptr) bool {
			sendErr = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
			return !errors.Is(sendErr, syscall.EAGAIN)
		})
		if err := errors.Join(err, sendErr); err != nil {
			t.Error(err)
		}
		c.Write([]byte(" after"))
	})
	for range 10 {
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || string(got) != "before ! after" {
			t.Errorf("got %q, %v", got, err)
		}
		c.Close()
	}
}

// A guest that does not read stops the host's side: its window is zero, and
// nothing is kept for it without a bound.
func TestTCPSlowGuestStopsTheHost(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	const size = 128 << 20 // more than all buffers on the way may ever hold
	sent := make(chan int64, 1)
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		chunk := make([]byte, 1<<20)
		var n int64
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		for n < size {
			m, err := c.Write(chunk)
			n += int64(m)
			if err != nil {
				break
			}
		}
		sent <- n
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := <-sent
	c.SetDeadline(time.Now().Add(patience))
	got, err := io.Copy(io.Discard, c)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || want >= size {
		t.Errorf("%d bytes were sent while nobody read, of which %d came", want, got)
	}
}

// A question for a neighbour that is due at that moment is not written to whatever has the
// device's descriptor by then.
func TestTheStackWritesNothingAfterTheEnd(t *testing.T) {
	r := newRig(t, rigOptions{Options: all, bare: true})
	r.stop()
	err := <-r.errs
	r.errs <- err // for the cleanup
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(arpRequest(childIPv4))})
	defer pkt.DecRef()
	var late stack.PacketBufferList
	late.PushBack(pkt)
	n, terr := r.e.link.WritePackets(late)
	if _, closed := terr.(*tcpip.ErrClosedForSend); n != 0 || !closed {
		t.Errorf("%d packets are written: %v", n, terr)
	}
}

// Handshakes that nobody completes do not keep the engine from its end, nor do those
// that begin when the stack is closed already.
func TestTheEngineEndsWithHandshakesUnderWay(t *testing.T) {
	for range 20 {
		r := newRig(t, rigOptions{Options: all, bare: true})
		server := listen(t, "127.0.0.1:0", echoTCP)
		for port := range uint16(100) {
			r.send(synFrame(netip.AddrPortFrom(childIPv4, 4000+port), r.gateway(server)), vnetHeader{})
		}
		r.stop()
		select {
		case err := <-r.errs:
			r.errs <- err // for the cleanup
		case <-time.After(patience):
			t.Fatal("the engine does not end")
		}
	}
}
