package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// teller is a port.Opener that serves connections and flows itself: it tells each
// client in whose name it was asked.
type teller struct {
	mu      sync.Mutex // guards what is below
	fail    error      // of Connect and OpenDatagrams
	asked   int
	refuse  bool // each datagram
	lost    bool // what a service answers
	running sync.WaitGroup
}

func (o *teller) Keeps(client, service netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return client.Is4() == service.Is4() && !o.lost
}

func (o *teller) Reaches(service netip.Addr) bool { return service.IsLoopback() }

func (o *teller) outcome() (refuse bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return o.refuse, o.fail
}

func (o *teller) set(refuse bool, fail error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse, o.fail, o.asked = refuse, fail, 0
}

func (o *teller) Connect(_ context.Context, client, _ netip.AddrPort, fd int, over func()) (func(), error) {
	if _, err := o.outcome(); err != nil {
		return nil, fmt.Errorf("teller: %w", err)
	}
	file := os.NewFile(uintptr(fd), "client")
	o.running.Go(func() {
		defer over()
		defer file.Close()
		fmt.Fprintln(file, client)
		_, _ = io.Copy(io.Discard, file) // until the client ends, or cut
	})
	return func() {
		_ = control(file, linux.ResetOnClose)
		file.SetReadDeadline(time.Unix(1, 0))
	}, nil
}

type tellerFlow struct {
	*teller
	client  netip.AddrPort
	receive func([]byte)
	refused func([]byte)
}

func (o *teller) OpenDatagrams(client, _ netip.AddrPort, receive, refused func([]byte)) (port.Datagrams, error) {
	if _, err := o.outcome(); err != nil {
		return nil, err
	}
	return &tellerFlow{o, client, receive, refused}, nil
}

func (f *tellerFlow) Send(payload []byte) {
	if refuse, _ := f.outcome(); refuse {
		f.refused(payload)
		return
	}
	f.receive([]byte(f.client.String()))
}

func (f *tellerFlow) Try(payload []byte) port.Fate {
	f.Send(payload)
	return port.FateUnknown
}

func (f *tellerFlow) Close() {}

// The addresses of a client and of the host, on the network between them.
const (
	clientIPv4, hostIPv4 = "198.51.100.2", "198.51.100.1"
)

// newClientHost makes a machine beside the test's namespace.
func newClientHost(t *testing.T) *away {
	t.Helper()
	a := newAway(t)
	var ns *os.File
	var err error
	a.do(func() { ns, err = os.Open("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1", PeerNamespace: netlink.NsFd(int(ns.Fd()))})
	if err == nil {
		err = upWith("veth0", hostIPv4)
	}
	if err != nil {
		t.Fatal(err)
	}
	if a.do(func() { err = upWith("veth1", clientIPv4) }); err != nil {
		t.Fatal(err)
	}
	return a
}

// upWith gives an interface of the calling thread's namespace an address, and
// brings it up.
func upWith(name, ip string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(ip + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

// ask reads what the client is told, over TCP or UDP.
func ask(t *testing.T, from *away, network, address string) (told string, client net.Conn) {
	t.Helper()
	var err error
	dial := func() { client, err = net.DialTimeout(network, address, testenv.Patience) }
	if from == nil {
		dial()
	} else {
		from.do(dial)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return askAgain(t, client), client
}

// askAgain is ask by a client that is there.
func askAgain(t *testing.T, client net.Conn) (told string) {
	t.Helper()
	_ = client.SetDeadline(time.Now().Add(testenv.Patience))
	if _, err := client.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := client.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestConnectionsAreOpenedInTheirClientsName(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		opener, client := &teller{}, newClientHost(t)
		t.Cleanup(opener.running.Wait)
		d := start(t, Options{Opener: opener})
		stream, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) { fmt.Fprint(c, "fast path"); _, _ = io.Copy(io.Discard, c) })
		datagrams, _ := serveUDP(t, "127.0.0.1:0", func([]byte) []byte { return []byte("fast path") })
		tcp, udp := forwardTo(t, d, "tcp", hostIPv4, stream), forwardTo(t, d, "udp", hostIPv4, datagrams)

		for network, address := range map[string]string{"tcp": tcp, "udp": udp} {
			told, conn := ask(t, client, network, address)
			if want := conn.LocalAddr().String(); told != want && told != want+"\n" {
				t.Errorf("%s: the client at %s is told %q", network, want, told)
			}
			if told, _ := ask(t, nil, network, address); told != "fast path" {
				t.Errorf("%s: the host itself is told %q", network, told)
			}
			opener.set(false, unix.ECONNREFUSED)
			if told, _ := ask(t, client, network, address); told != "fast path" {
				t.Errorf("%s: what is refused is tried no more: %q", network, told)
			}
			opener.set(false, nil)
		}

		// What is not answered is not tried again, for this client.
		opener.set(false, unix.ETIMEDOUT)
		for range 3 {
			if told, _ := ask(t, client, "tcp", tcp); told != "fast path" {
				t.Errorf("what cannot be kept gets %q", told)
			}
		}
		opener.mu.Lock()
		defer opener.mu.Unlock()
		if opener.asked != 1 {
			t.Errorf("it was tried %d times, want once", opener.asked)
		}
	})
}

func TestAForwardSaysWhoseAddressItsServiceSees(t *testing.T) {
	for name, opener := range map[string]port.Opener{"with an opener": &teller{}, "without": nil} {
		t.Run(name, func(t *testing.T) {
			d := start(t, Options{Opener: opener})
			for text, want := range map[string]port.SourceIP{
				"0:80/tcp":                    port.SourceIPPreserve,
				"0:80/udp":                    port.SourceIPPreserve,
				"0:[::1]:80/tcp6":             port.SourceIPPreserve,
				"0:127.0.0.1:80/tcp":          port.SourceIPPartly, // not for clients of IPv6
				"0:127.0.0.1:80/udp6":         port.SourceIPOff,
				"0:172.17.0.2:80/tcp4":        port.SourceIPOff, // there is no way to it
				"127.0.0.1:0:80/tcp":          port.SourceIPOff, // for the host alone
				"[::1]:0:80/udp":              port.SourceIPOff,
				"0.0.0.0:0:127.0.0.1:80/tcp4": port.SourceIPPreserve,
			} {
				if opener == nil {
					want = port.SourceIPOff
				}
				added := add(t, d, text)
				if got := added[0].SourceIP; got != want {
					t.Errorf("%s is answered with %q, want %q", text, got, want)
				}
				list := d.List()
				if got := list[len(list)-1].SourceIP; got != want {
					t.Errorf("%s is listed with %q, want %q", text, got, want)
				}
			}
		})
	}
}

// slowOpener is a teller whose way in takes a while to open.
type slowOpener struct {
	teller
	asked, open chan struct{}
}

func (o *slowOpener) Reaches(netip.Addr) bool {
	o.asked <- struct{}{}
	<-o.open
	return true
}

func TestAnOpenerThatTakesItsTimeHoldsNobodyUp(t *testing.T) {
	o := &slowOpener{asked: make(chan struct{}, 1), open: make(chan struct{})}
	d := start(t, Options{Opener: o})
	added := make(chan error)
	go func() {
		_, err := d.Add(context.Background(), specs(t, "0:80/tcp4"))
		added <- err
	}()
	<-o.asked
	told := make(chan struct{})
	go func() { d.Flows(); close(told) }()
	select {
	case <-told:
	case <-time.After(testenv.Patience):
		t.Error("the flows are not listed while a forward is added")
	}
	close(o.open)
	if err := <-added; err != nil {
		t.Error(err)
	}
	<-told
}

func TestConnectionsInTheirClientsNameAreCut(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		opener, client := &teller{}, newClientHost(t)
		t.Cleanup(opener.running.Wait)
		d := start(t, Options{Opener: opener})
		added := add(t, d, hostIPv4+":0:80/tcp")
		_, conn := ask(t, client, "tcp", at(hostIPv4, added[0].Spec.ParentPort))
		if got := d.count.conns.Load(); got != 1 {
			t.Errorf("%d connections are counted, want 1", got)
		}
		if err := d.Remove(t.Context(), []int{added[0].ID}, 0); err != nil {
			t.Fatal(err)
		}
		wantReset(t, conn)
		testenv.Until(t, "no connection to be counted", func() bool { return d.count.conns.Load() == 0 })
	})
}

// hesitant is a teller that connects when it is told to.
type hesitant struct {
	teller
	asked chan netip.AddrPort
	yes   chan struct{}
}

func (o *hesitant) Connect(ctx context.Context, client, service netip.AddrPort, fd int, over func()) (func(), error) {
	o.asked <- client
	select {
	case <-o.yes:
		return o.teller.Connect(ctx, client, service, fd, over)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestAttemptsInAClientsNameTakeTurns(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		o, outside := &hesitant{asked: make(chan netip.AddrPort, 8), yes: make(chan struct{})}, newClientHost(t)
		t.Cleanup(o.running.Wait)
		d := New(Options{Sockets: &home{}, Opener: o})
		d.opening = make(chan struct{}, 2)
		run(t, d)
		service, _ := serveTCP(t, "127.0.0.1:0", echo)
		address := forwardTo(t, d, "tcp", hostIPv4, service)
		var conns []*net.TCPConn
		outside.do(func() {
			for range 4 {
				conns = append(conns, dialTCP(t, address))
			}
		})
		testenv.Until(t, "all to be accepted", func() bool { return d.Counters().Conns == 4 })
		<-o.asked
		<-o.asked
		select {
		case client := <-o.asked:
			t.Errorf("%v has its turn before another is over", client)
		default:
		}
		o.yes <- struct{}{}
		<-o.asked
		// Those who wait go with their forward, and those who are asked for.
		if err := d.Remove(t.Context(), []int{1}, 0); err != nil {
			t.Fatal(err)
		}
		for _, c := range conns {
			_ = c.SetDeadline(time.Now().Add(testenv.Patience))
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("a client sees %v", err)
			}
		}
		testenv.Until(t, "all to be over", func() bool { return d.Counters().Conns == 0 })
	})
}

// A client whose answers go elsewhere is served by the fast path, which is told of for as
// long as that goes on and a while; the host itself and those whose address is kept are
// nothing to tell of.
func TestAForwardSaysThatAClientTookTheFastPath(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		stream, _ := serveTCP(t, "127.0.0.1:0", echo)
		datagrams, _ := serveUDP(t, "127.0.0.1:0", func(b []byte) []byte { return b })
		client := newClientHost(t)
		for network, service := range map[string]net.Addr{"tcp": stream, "udp": datagrams} {
			opener := &teller{}
			t.Cleanup(opener.running.Wait)
			d := start(t, Options{Opener: opener, FlowTimeout: time.Second})
			address := forwardTo(t, d, network, hostIPv4, service)
			expect := func(when string, want port.SourceIP) {
				t.Helper()
				if got := d.List()[0].SourceIP; got != want {
					t.Errorf("%s, %s is listed as %q, want %q", when, network, got, want)
				}
			}
			ask(t, client, network, address)
			ask(t, nil, network, address)
			expect("with its client's address and the host's", port.SourceIPPreserve)
			opener.mu.Lock()
			opener.lost = true
			opener.mu.Unlock()
			told, conn := ask(t, client, network, address)
			if told != "?" {
				t.Errorf("over %s, whose answers go elsewhere is told %q", network, told)
			}
			expect("with a client whose answers go elsewhere", port.SourceIPPartly)
			conn.Close()
			fw := d.forwards[1]
			testenv.Until(t, "the end of it", func() bool {
				fw.strays.mu.Lock()
				defer fw.strays.mu.Unlock()
				return fw.strays.now == 0
			})
			expect("just after it", port.SourceIPPartly)
			fw.strays.mu.Lock()
			fw.strays.until = time.Now()
			fw.strays.mu.Unlock()
			expect("a while after it", port.SourceIPPreserve)
		}
	})
}

// What is refused in a client's name may be a firewall's doing: the fast path is tried, and
// told of where somebody is there. Where nobody is, a service that comes later sees its
// client.
func TestDatagramsThatAreRefusedInTheirClientsNameTakeTheFastPath(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		opener, client := &teller{}, newClientHost(t)
		d := start(t, Options{Opener: opener})
		add(t, d, hostIPv4+":8080:127.0.0.1:80/udp4", hostIPv4+":8081:81/udp4")
		serveUDP(t, "127.0.0.1:81", func([]byte) []byte { return []byte("fast path") })
		sourceIPs := func() (all []port.SourceIP) {
			for _, s := range d.List() {
				all = append(all, s.SourceIP)
			}
			return all
		}

		opener.set(true, nil)
		var absent *net.UDPConn
		client.do(func() { absent = dialUDP(t, hostIPv4+":8080") })
		if _, err := absent.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		testenv.Until(t, "the refusal", func() bool {
			opener.mu.Lock()
			defer opener.mu.Unlock()
			return opener.asked == 3 // opened, refused, and opened again after the fast path
		})
		told, behind := ask(t, client, "udp", hostIPv4+":8081")
		if told != "fast path" {
			t.Errorf("a client whom a firewall refuses is told %q", told)
		}
		if got := sourceIPs(); !slices.Equal(got, []port.SourceIP{port.SourceIPPreserve, port.SourceIPPartly}) {
			t.Errorf("the forwards are listed with %q", got)
		}
		opener.set(false, nil)
		if got := askAgain(t, absent); got != absent.LocalAddr().String() {
			t.Errorf("when its service comes, a client is told %q", got)
		}
		if got := askAgain(t, behind); got != "fast path" {
			t.Errorf("within a conversation a client is told %q", got)
		}
	})
}

func TestDetoursAreForgotten(t *testing.T) {
	var d detours
	client := netip.MustParseAddr(clientIPv4)
	if d.has(client) {
		t.Error("there is one before the first")
	}
	d.add(client)
	if !d.has(client) {
		t.Error("there is none")
	}
	d.until[client] = time.Now().Add(-time.Second)
	if d.has(client) || len(d.until) != 0 {
		t.Error("it is there after its time")
	}
	for i := range 2 * maxDetours {
		d.add(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}))
	}
	if len(d.until) > maxDetours {
		t.Errorf("%d are noted", len(d.until))
	}
}

// A client whose machine is gone says nothing: the probes find out, and the service is
// told.
func TestTheKeepaliveEndsConnectionsOfVanishedClients(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		outside := newClientHost(t)
		ended := make(chan error, 1)
		service, _ := serveTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, err := io.Copy(c, c)
			ended <- err
		})
		d := start(t, Options{KeepAlive: time.Second})
		address := forwardTo(t, d, "tcp", hostIPv4, service)
		outside.do(func() {
			c := dialTCP(t, address)
			roundTrip(t, c, "hello")
			if link, err := netlink.LinkByName("veth1"); err != nil || netlink.LinkSetDown(link) != nil {
				t.Error("the client's interface does not go down")
			}
		})
		select {
		case err := <-ended:
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the service sees %v, want a reset", err)
			}
		case <-time.After(testenv.Patience):
			t.Error("the service waits for a client that is gone")
		}
	})
}
