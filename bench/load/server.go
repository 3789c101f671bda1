package load

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ServerOptions says where a Server listens. A port of 0 is any free port.
type ServerOptions struct {
	// Addr is the address of all sockets. The zero value is the unspecified
	// address of IPv4.
	Addr netip.Addr

	// TCP are the ports that echo what a connection sends. Several of them let a
	// client open more connections than there are local ports.
	TCP []uint16

	// UDP is the port that echoes datagrams, Sink the one that counts them.
	UDP, Sink uint16
}

// Server answers the clients of this package until it is closed.
type Server struct {
	tcp  []*net.TCPListener
	udp  *net.UDPConn
	sink *net.UDPConn

	arrivals arrivals
	lastPeer atomic.Pointer[netip.Addr]
	running  sync.WaitGroup

	mu     sync.Mutex
	conns  map[*net.TCPConn]struct{} // guarded by mu; nil once closed
	closed bool                      // guarded by mu
}

// Listen opens all sockets of a Server and starts to answer on them.
func Listen(o ServerOptions) (*Server, error) {
	if !o.Addr.IsValid() {
		o.Addr = netip.IPv4Unspecified()
	}
	s := &Server{conns: map[*net.TCPConn]struct{}{}}
	if err := s.listen(o); err != nil {
		s.Close()
		return nil, err
	}
	for _, l := range s.tcp {
		s.running.Go(func() { s.accept(l) })
	}
	s.running.Go(func() { echoDatagrams(s.udp) })
	s.running.Go(func() { s.arrivals.count(s.sink) })
	return s, nil
}

func (s *Server) listen(o ServerOptions) (err error) {
	for _, port := range o.TCP {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Addr, port)))
		if err != nil {
			return err
		}
		s.tcp = append(s.tcp, l)
	}
	if s.udp, err = listenUDP(o.Addr, o.UDP); err != nil {
		return err
	}
	s.sink, err = listenUDP(o.Addr, o.Sink)
	return err
}

// listenUDP opens a socket that queues as much as the kernel lets an unprivileged
// program have.
func listenUDP(addr netip.Addr, port uint16) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		conn.Close()
		return nil, fmt.Errorf("set the receive buffer of %v: %w", conn.LocalAddr(), err)
	}
	return conn, nil
}

// TCP are the addresses that echo streams.
func (s *Server) TCP() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, l := range s.tcp {
		addrs = append(addrs, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return addrs
}

// UDP is the address that echoes datagrams.
func (s *Server) UDP() netip.AddrPort { return s.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Sink is the address that counts datagrams.
func (s *Server) Sink() netip.AddrPort { return s.sink.LocalAddr().(*net.UDPAddr).AddrPort() }

// LastPeer is the address of who connected last, not valid before the first.
func (s *Server) LastPeer() netip.Addr {
	if addr := s.lastPeer.Load(); addr != nil {
		return *addr
	}
	return netip.Addr{}
}

// Arrivals returns what the sink has counted since Forget.
func (s *Server) Arrivals() Arrivals { return s.arrivals.get() }

// Forget has the sink count from 0.
func (s *Server) Forget() { s.arrivals.forget() }

// Close ends all listeners and connections, and returns when the Server's
// goroutines have ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	for _, l := range s.tcp {
		l.Close()
	}
	for _, conn := range []*net.UDPConn{s.udp, s.sink} {
		if conn != nil {
			conn.Close()
		}
	}
	s.running.Wait()
}

func (s *Server) accept(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a shortage of descriptors, or a client that left
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.conns[conn] = struct{}{}
		s.running.Go(func() { s.echo(conn) })
		s.mu.Unlock()
	}
}

// echo sends back what comes, until the client closes. Questions are small: the
// buffer is small too, so that held connections cost the Server little.
func (s *Server) echo(conn *net.TCPConn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	addr := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	s.lastPeer.Store(&addr)
	var buf [64]byte
	for {
		n, err := conn.Read(buf[:])
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return // io.EOF, or a reset
		}
	}
}

func echoDatagrams(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // lost, as datagrams may be
		}
	}
}

// Arrivals says what arrived at a sink.
type Arrivals struct {
	Datagrams int

	// Span is the time between the first and the last.
	Span time.Duration
}

// Rate is datagrams per second; 0 for fewer than two.
func (a Arrivals) Rate() float64 { return rate(a.Datagrams, a.Span) }

// arrivals counts for Arrivals.
type arrivals struct {
	mu    sync.Mutex
	first time.Time // guarded by mu
	sum   Arrivals  // guarded by mu
}

func (a *arrivals) count(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		_, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			continue
		}
		now := time.Now()
		a.mu.Lock()
		if a.sum.Datagrams == 0 {
			a.first = now
		}
		a.sum.Datagrams++
		a.sum.Span = now.Sub(a.first)
		a.mu.Unlock()
	}
}

func (a *arrivals) get() Arrivals {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sum
}

func (a *arrivals) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sum = Arrivals{}
}
