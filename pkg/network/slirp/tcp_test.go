package slirp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// eachFamily runs a test for both families on both kinds of device.
func eachFamily(t *testing.T, test func(t *testing.T, r *rig, local string)) {
	for family, local := range families {
		for _, plain := range []bool{false, true} {
			name := family + " with offload"
			if plain {
				name = family + " on a plain TAP"
			}
			t.Run(name, func(t *testing.T) { test(t, newRig(t, rigOptions{Options: all, plain: plain}), local) })
		}
	}
}

func TestTCPCarriesBothDirectionsAndHalfClose(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		const size = 3 << 20
		sent := make([]byte, size)
		rand.NewChaCha8([32]byte{}).Read(sent)
		// The server reads to the end before it answers, so the answer needs a
		// connection of which one half is closed.
		server := listen(t, local, func(c *net.TCPConn) {
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("server got %d bytes, error %v", len(got), err)
			}
			c.Write(got)
		})
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Errorf("got %d bytes back that differ", len(got))
		}
	})
}

func TestTCPHostClosesFirst(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		rest := make(chan string, 1)
		server := listen(t, local, func(c *net.TCPConn) {
			c.Write([]byte("bye"))
			c.CloseWrite()
			got, _ := io.ReadAll(c)
			rest <- string(got)
		})
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
			t.Fatalf("got %q, %v", got, err)
		}
		if _, err := c.Write([]byte("and more")); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := <-rest; got != "and more" {
			t.Errorf("host got %q after its own end", got)
		}
	})
}

func TestTCPResetOfTheHostReachesTheGuest(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		server := listen(t, local, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || !strings.Contains(err.Error(), "reset") {
			t.Errorf("read: %v, want a reset", err)
		}
	})
}

func TestTCPResetOfTheGuestReachesTheHost(t *testing.T) {
	eachFamily(t, func(t *testing.T, r *rig, local string) {
		got := make(chan error, 1)
		server := listen(t, local, func(c *net.TCPConn) {
			c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			got <- err
		})
		c, err := r.dial(r.gateway(server))
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(c, make([]byte, 1))
		r.resetGuest()
		c.Close()
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("host read: %v, want ECONNRESET", err)
		}
	})
}

func TestTCPIsRefused(t *testing.T) {
	taken := listen(t, "127.0.0.1:0", echoTCP)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().(*net.TCPAddr).AddrPort()
	closed.Close()
	port := taken.Port()
	at := func(s string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), port) }
	none := Options{}
	for _, test := range []struct {
		name    string
		options Options
		to      netip.AddrPort
	}{
		{"where nobody listens", all, at("10.0.2.2", nobody.Port())},
		{"at the gateway without --host-loopback", none, at("10.0.2.2", port)},
		{"at the gateway on a port that is not open", Options{HostLoopback: HostLoopback{ports: []portRange{{1, 1}}}}, at("10.0.2.2", port)},
		{"at the DNS address on another port", all, at("10.0.2.3", port)},
		{"at the unspecified IPv4 network", all, at("0.0.0.1", port)},
		{"at the IPv6 gateway without --host-loopback", none, at("fd67:6174:656b::2", port)},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, rigOptions{Options: test.options})
			start := time.Now()
			c, err := r.dial(test.to)
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), "refused") {
				t.Errorf("%v after %v, want connection refused", err, time.Since(start))
			}
		})
	}
}

func TestTCPManyConnectionsAtOnce(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	server := listen(t, "127.0.0.1:0", echoTCP)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			c, err := r.dial(r.gateway(server))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			msg := []byte("hello")
			c.Write(msg)
			if _, err := io.ReadFull(c, msg); err != nil || string(msg) != "hello" {
				t.Errorf("got %q, %v", msg, err)
			}
		})
	}
	wg.Wait()
}

// A reader that does not read has to stop the sender: there is no buffer without
// a bound in between.
func TestTCPSlowReaderStopsTheSender(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	release := make(chan struct{})
	total := make(chan int64, 1)
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		<-release
		n, _ := io.Copy(io.Discard, c)
		total <- n
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// More than all buffers on the way may ever hold.
	const size = 128 << 20
	var sent int64
	chunk := make([]byte, 1<<20)
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for sent < size {
		n, err := c.Write(chunk)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	if sent >= size {
		t.Fatalf("sent %d bytes that nobody read", sent)
	}
	close(release)
	c.CloseWrite()
	if got := <-total; got != sent {
		t.Errorf("sent %d bytes, %d came", sent, got)
	}
}

func TestRunEndsWithOpenConnections(t *testing.T) {
	r := newRig(t, rigOptions{Options: all})
	ended := make(chan error, 1)
	server := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	c, err := r.dial(r.gateway(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.ReadFull(c, make([]byte, 1))
	r.stop()
	if err := <-ended; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("host's read gave %v after the end of the engine", err)
	}
}

func TestRunFailsWhenTheDeviceEnds(t *testing.T) {
	r := newRig(t, rigOptions{bare: true})
	r.wire.Close()
	err := <-r.errs
	r.errs <- nil // for the cleanup
	if !errors.Is(err, io.EOF) {
		t.Errorf("Run returned %v, want the device's error", err)
	}
}

func TestANetworkThatCannotReadIsNotReady(t *testing.T) {
	n, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "") // which no epoll takes
	if err != nil {
		t.Fatal(err)
	}
	dev, err := newDevice(file, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.run(t.Context(), dev, func() { t.Error("it says that it is ready") }); !errors.Is(err, syscall.EPERM) {
		t.Errorf("run: %v, want %v", err, syscall.EPERM)
	}
}
