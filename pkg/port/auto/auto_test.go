package auto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

// The tests look at the sockets of their own namespace, where others listen too,
// and have a driver that binds nothing.

func TestMain(m *testing.M) { testenv.Main(m) }

// home is port.Sockets at home.
type home struct{ err error }

func (h home) Sockets(_ context.Context, domain, typ, n int) ([]*os.File, error) {
	if h.err != nil {
		return nil, h.err
	}
	if domain != unix.AF_NETLINK || n != 1 {
		return nil, fmt.Errorf("%d sockets of domain %d", n, domain)
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	return []*os.File{os.NewFile(uintptr(fd), "netlink")}, err
}

// driver notes the forwards. It refuses those of the ports in taken.
type driver struct {
	port.Driver

	mu    sync.Mutex // guards what is below
	list  []port.Status
	last  int
	tries int
	taken []int
}

func (d *driver) Add(_ context.Context, specs []port.Spec) ([]port.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var added []port.Status
	for _, spec := range specs {
		if slices.Contains(d.taken, spec.ParentPort) {
			d.tries++
			return nil, fmt.Errorf("%w: %s", port.ErrConflict, spec)
		}
		d.last++
		added = append(added, port.Status{ID: d.last, Spec: spec})
	}
	d.list = append(d.list, added...)
	return added, nil
}

func (d *driver) Remove(_ context.Context, ids []int, _ time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.list)
	d.list = slices.DeleteFunc(d.list, func(s port.Status) bool { return slices.Contains(ids, s.ID) })
	if len(d.list) == before {
		return port.ErrNotFound
	}
	return nil
}

func (d *driver) List() []port.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list)
}

// to are the forwards to a port, as text.
func (d *driver) to(number int) string {
	var texts []string
	for _, s := range d.List() {
		if s.Spec.ChildPort == number {
			texts = append(texts, s.Spec.String())
		}
	}
	return strings.Join(texts, " ")
}

// start runs a Publisher for the length of the test.
func start(t *testing.T, d *driver, o Options) *Publisher {
	t.Helper()
	o.Driver, o.Interval = d, 5*time.Millisecond
	if o.Sockets == nil {
		o.Sockets = home{}
	}
	p := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := p.Enable(context.Background()); err == nil {
			t.Error("it is turned on after its end")
		}
	})
	return p
}

// listen opens a service, on a port of its own or on one that it is told.
func listen(t *testing.T, network, ip string, number int) (int, func()) {
	t.Helper()
	address := net.JoinHostPort(ip, fmt.Sprint(number))
	if strings.HasPrefix(network, "udp") {
		for range 1000 { // a port below the ephemeral ones
			c, err := net.ListenPacket(network, address)
			if err == nil && netip.MustParseAddrPort(c.LocalAddr().String()).Port() < firstEphemeral {
				t.Cleanup(func() { c.Close() })
				return int(netip.MustParseAddrPort(c.LocalAddr().String()).Port()), func() { c.Close() }
			}
			if err == nil {
				c.Close()
			}
			number = 20000 + int(time.Now().UnixNano()%10000)
			address = net.JoinHostPort(ip, fmt.Sprint(number))
		}
		t.Fatal("no port is free")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port, func() { l.Close() }
}

func want(t *testing.T, d *driver, number int, text string) {
	t.Helper()
	testenv.Until(t, fmt.Sprintf("%q", text), func() bool { return d.to(number) == text })
}

func TestWhatListensIsPublished(t *testing.T) {
	d := &driver{}
	p := start(t, d, Options{})
	before, _ := listen(t, "tcp4", "127.0.0.1", 0)
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.to(before); got != fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", before) {
		t.Errorf("what listens when it is turned on: %q", got)
	}
	for _, tt := range []struct{ network, ip, want string }{
		{"tcp4", "127.0.0.1", "127.0.0.1:%d:%[1]d/tcp"},
		{"tcp4", "0.0.0.0", "127.0.0.1:%d:%[1]d/tcp"},
		{"tcp6", "::1", "127.0.0.1:%d:%[1]d/tcp"},
		{"tcp", "::", "127.0.0.1:%d:%[1]d/tcp"},
		{"tcp4", "127.0.0.53", "127.0.0.1:%d:127.0.0.53:%[1]d/tcp"},
		{"udp4", "127.0.0.1", "127.0.0.1:%d:%[1]d/udp"},
		{"udp6", "::1", "127.0.0.1:%d:%[1]d/udp"},
	} {
		t.Run(tt.network+" on "+tt.ip, func(t *testing.T) {
			number, stop := listen(t, tt.network, tt.ip, 0)
			want(t, d, number, fmt.Sprintf(tt.want, number))
			stop()
			want(t, d, number, "")
		})
	}
	if err := p.Enable(t.Context()); err != nil {
		t.Errorf("turned on twice: %v", err)
	}
	if err := p.Disable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := d.List(); len(list) != 0 {
		t.Errorf("after it was turned off there are %v", list)
	}
	if err := p.Disable(t.Context()); err != nil {
		t.Errorf("turned off twice: %v", err)
	}
	// And on again.
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, d, before, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", before))
}

func TestAServiceThatMovesIsFollowed(t *testing.T) {
	d := &driver{}
	p := start(t, d, Options{})
	number, stop := listen(t, "tcp4", "127.0.0.1", 0)
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, d, number, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", number))
	stop()
	listen(t, "tcp4", "127.0.0.53", number)
	want(t, d, number, fmt.Sprintf("127.0.0.1:%d:127.0.0.53:%[1]d/tcp", number))
}

func TestPeopleComeFirst(t *testing.T) {
	d := &driver{}
	p := start(t, d, Options{})
	number, stop := listen(t, "tcp4", "127.0.0.1", 0)
	mine, err := port.Parse(fmt.Sprintf("198.51.100.1:8080:%d/tcp4", number))
	if err != nil {
		t.Fatal(err)
	}
	statuses, err := d.Add(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.to(number); got != mine[0].String() {
		t.Errorf("what is published by hand is published again: %s", got)
	}
	if err := d.Remove(t.Context(), []int{statuses[0].ID}, 0); err != nil {
		t.Fatal(err)
	}
	want(t, d, number, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", number))

	// It makes room, also for a forward elsewhere that needs the same address.
	for _, text := range []string{fmt.Sprintf("9000:%d/tcp", number), fmt.Sprintf("%d:9000/tcp", number)} {
		wanted, err := port.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Yield(t.Context(), wanted); err != nil {
			t.Fatal(err)
		}
		want(t, d, number, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", number)) // nobody came
	}

	// What is removed by hand stays away until the service starts anew.
	list := d.List()
	i := slices.IndexFunc(list, func(s port.Status) bool { return s.Spec.ChildPort == number })
	if err := d.Remove(t.Context(), []int{list[i].ID}, 0); err != nil {
		t.Fatal(err)
	}
	other, _ := listen(t, "tcp4", "127.0.0.1", 0)
	want(t, d, other, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", other)) // it has looked
	if got := d.to(number); got != "" {
		t.Errorf("it is back: %s", got)
	}
	stop()
	again, _ := listen(t, "tcp4", "127.0.0.1", 0)
	want(t, d, again, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", again))
	listen(t, "tcp4", "127.0.0.1", number)
	want(t, d, number, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", number))
}

// The socket of a reverse forward is nobody's service; a service beside it, on another
// address or where the forward has no socket (at the gateway), is.
func TestReverseForwardsAreNoServices(t *testing.T) {
	d := &driver{}
	p := start(t, d, Options{})
	service, _ := listen(t, "tcp4", "127.0.0.1", 0)
	own, _ := listen(t, "tcp4", "127.0.0.1", 0)
	beside, _ := listen(t, "tcp4", "127.0.0.1", 0)
	listen(t, "tcp4", "127.0.0.53", beside)
	reverse := func(childIP string, number int) string {
		t.Helper()
		specs, err := port.ParseReverse(fmt.Sprintf("8090:%s%d/tcp", childIP, number))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Add(t.Context(), specs); err != nil {
			t.Fatal(err)
		}
		return specs[0].String()
	}
	atGateway, onLoopback, others := reverse("10.0.2.2:", service), reverse("", own), reverse("127.0.0.1:", beside)
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	for number, text := range map[int]string{
		service: atGateway + fmt.Sprintf(" 127.0.0.1:%d:%[1]d/tcp", service),
		own:     onLoopback,
		beside:  others + fmt.Sprintf(" 127.0.0.1:%d:127.0.0.53:%[1]d/tcp", beside),
	} {
		if got := d.to(number); got != text {
			t.Errorf("there are %q, want %q", got, text)
		}
	}
}

func TestARefusalIsToldOnceAndTriedAgain(t *testing.T) {
	number, stop := listen(t, "tcp4", "127.0.0.1", 0)
	d := &driver{taken: []int{number}}
	var log lockedBuffer
	p := start(t, d, Options{Retry: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err := p.Enable(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "several tries", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.tries > 3
	})
	d.mu.Lock()
	d.taken = nil
	d.mu.Unlock()
	want(t, d, number, fmt.Sprintf("127.0.0.1:%d:%[1]d/tcp", number))
	if text := log.String(); strings.Count(text, fmt.Sprintf("spec=127.0.0.1:%d:", number)) != 1 {
		t.Errorf("the log is %s", text)
	}
	stop()
	want(t, d, number, "")
}

func TestWithoutASocketItStaysOff(t *testing.T) {
	p := start(t, &driver{}, Options{Sockets: home{unix.EPROTONOSUPPORT}})
	if err := p.Enable(t.Context()); !errors.Is(err, unix.EPROTONOSUPPORT) || !strings.Contains(err.Error(), "see what listens") {
		t.Error(err)
	}
	if p.on() {
		t.Error("it is on")
	}
}

func TestWhichSocketsCount(t *testing.T) {
	for _, tt := range []struct {
		transport, local string
		want             string // the ChildIP, "-" for none at all
	}{
		{"tcp", "0.0.0.0:80", ""},
		{"tcp", "[::]:80", ""},
		{"tcp", "[::1]:80", ""},
		{"tcp", "127.0.0.1:80", ""},
		{"tcp", "10.0.2.100:80", "10.0.2.100"},
		{"tcp", "[fd00::1]:80", "fd00::1"},
		{"tcp", "[fe80::1]:80", "-"},
		{"tcp", "0.0.0.0:40000", ""},
		{"udp", "0.0.0.0:40000", "-"},
		{"udp", "224.0.0.251:5353", "-"},
		{"udp", "0.0.0.0:5353", ""},
		{"udp", "0.0.0.0:0", "-"},
	} {
		found := map[service]string{}
		local := netip.MustParseAddrPort(tt.local)
		note(found, tt.transport, local)
		got, ok := found[service{tt.transport, int(local.Port())}]
		if !ok {
			got = "-"
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.transport, tt.local, got, tt.want)
		}
	}
	for _, order := range [][]string{{"10.0.2.100:80", "0.0.0.0:80"}, {"0.0.0.0:80", "10.0.2.100:80"}} {
		found := map[service]string{}
		for _, local := range order {
			note(found, "tcp", netip.MustParseAddrPort(local))
		}
		if found[service{"tcp", 80}] != "" {
			t.Errorf("of %v it is %v", order, found)
		}
	}
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
