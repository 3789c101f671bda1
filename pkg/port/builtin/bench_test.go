package builtin

import (
	"fmt"
	"io"
	"net"
	"testing"
)

// Each benchmark has a row without the driver, to compare with in the same run.

func BenchmarkTCPStream(b *testing.B) {
	const block = 256 << 10
	run := func(b *testing.B, address string) {
		c := dialTCP(b, address)
		b.SetBytes(block)
		data := make([]byte, block)
		for b.Loop() {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
	sink, _ := serveTCP(b, "127.0.0.1:0", func(c *net.TCPConn) {
		buf := make([]byte, block)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	d := start(b, Options{})
	b.Run("direct", func(b *testing.B) { run(b, sink.String()) })
	b.Run("forwarded", func(b *testing.B) { run(b, forwardTo(b, d, "tcp", "127.0.0.1", sink)) })
}

func BenchmarkTCPConnect(b *testing.B) {
	run := func(b *testing.B, address string) {
		for b.Loop() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			fmt.Fprint(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	}
	service, _ := serveTCP(b, "127.0.0.1:0", echo)
	d := start(b, Options{})
	b.Run("direct", func(b *testing.B) { run(b, service.String()) })
	b.Run("forwarded", func(b *testing.B) { run(b, forwardTo(b, d, "tcp", "127.0.0.1", service)) })
}

func BenchmarkTCPRoundTrip(b *testing.B) {
	run := func(b *testing.B, address string) {
		c := dialTCP(b, address)
		buf := make([]byte, 1)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	service, _ := serveTCP(b, "127.0.0.1:0", echo)
	d := start(b, Options{})
	b.Run("direct", func(b *testing.B) { run(b, service.String()) })
	b.Run("forwarded", func(b *testing.B) { run(b, forwardTo(b, d, "tcp", "127.0.0.1", service)) })
}

func BenchmarkUDPRoundTrip(b *testing.B) {
	run := func(b *testing.B, address string) {
		c := dialUDP(b, address)
		buf := make([]byte, 1200)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	service, _ := serveUDP(b, "127.0.0.1:0", same)
	d := start(b, Options{})
	b.Run("direct", func(b *testing.B) { run(b, service.String()) })
	b.Run("forwarded", func(b *testing.B) { run(b, forwardTo(b, d, "udp", "127.0.0.1", service)) })
}
