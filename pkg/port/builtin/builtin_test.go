package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/port"
)

var _ port.Driver = (*Driver)(nil)

func TestAddAnswersWithTheSpecsAsTheyWereSent(t *testing.T) {
	d := start(t, Options{})
	number, release := freePort(t)
	release()
	sent := []port.Spec{
		{Proto: "tcp", ParentPort: number, ChildPort: 80},
		{Proto: "udp", ParentIP: "127.0.0.1", ParentPort: 0, ChildIP: "127.0.0.1", ChildPort: 53},
		{Proto: "tcp", ParentPort: 0, ChildPort: 81},
	}
	got, err := d.Add(t.Context(), sent)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sent {
		if sent[i].ParentPort == 0 {
			if got[i].Spec.ParentPort == 0 {
				t.Errorf("%s: port 0 is not filled in", got[i].Spec)
			}
			sent[i].ParentPort = got[i].Spec.ParentPort
		}
		if diff := cmp.Diff(port.Status{ID: i + 1, Spec: sent[i], SourceIP: port.SourceIPOff}, got[i]); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	if diff := cmp.Diff(got, d.List()); diff != "" {
		t.Errorf("the list (-added +listed)\n%s", diff)
	}
	if err := d.Remove(t.Context(), []int{3}, 0); err != nil {
		t.Fatal(err)
	}
	if id := add(t, d, "127.0.0.1:0:80/tcp")[0].ID; id != 4 {
		t.Errorf("the next id is %d: ids are not used twice", id)
	}
}

func TestFreePortIsFreeInBothFamilies(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	status := add(t, d, fmt.Sprintf("0:%d/tcp", service.(*net.TCPAddr).Port))[0]
	for _, ip := range []string{"127.0.0.1", "::1"} {
		roundTrip(t, dialTCP(t, at(ip, status.Spec.ParentPort)), ip)
	}
}

func TestAddIsAllOrNothing(t *testing.T) {
	d := start(t, Options{})
	taken, _ := freePort(t)
	free, release := freePort(t)
	release()
	batch := specs(t, fmt.Sprintf("127.0.0.1:%d:80/tcp", free), fmt.Sprintf("127.0.0.1:%d:80/udp", free),
		fmt.Sprintf("127.0.0.1:%d:80/tcp", taken))
	if _, err := d.Add(t.Context(), batch); !errors.Is(err, port.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if list := d.List(); len(list) != 0 {
		t.Errorf("the list is %v", list)
	}
	// What was bound before the conflict is free again.
	add(t, d, fmt.Sprintf("127.0.0.1:%d:80/tcp", free), fmt.Sprintf("127.0.0.1:%d:80/udp", free))
}

func TestRemoveIsAllOrNothing(t *testing.T) {
	d := start(t, Options{})
	add(t, d, "127.0.0.1:0:80/tcp", "127.0.0.1:0:80/udp")
	if err := d.Remove(t.Context(), []int{1, 7}, 0); !errors.Is(err, port.ErrNotFound) || !strings.Contains(err.Error(), "7") {
		t.Fatalf("got %v", err)
	}
	if list := d.List(); len(list) != 2 {
		t.Errorf("the list is %v", list)
	}
	if err := d.Remove(t.Context(), []int{2, 1}, 0); err != nil {
		t.Fatal(err)
	}
}

func TestConflictsAreTold(t *testing.T) {
	d := start(t, Options{})
	number, release := freePort(t)
	release()
	held := add(t, d, fmt.Sprintf("127.0.0.1:%d:80/tcp", number), fmt.Sprintf("127.0.0.1:%d:80/udp", number))
	stranger, _ := freePort(t)
	socket, _ := serveUDP(t, "127.0.0.1:0", same)
	datagrams := socket.(*net.UDPAddr).Port
	for _, tt := range []struct {
		name, spec, want string
	}{
		{"with a forward", fmt.Sprintf("127.0.0.1:%d:81/tcp", number), fmt.Sprintf("by forward %d (%s)", held[0].ID, held[0].Spec)},
		{"with a forward on one of all addresses", fmt.Sprintf("%d:81/tcp", number), fmt.Sprintf("by forward %d", held[0].ID)},
		{"with a UDP forward", fmt.Sprintf("127.0.0.1:%d:81/udp", number), fmt.Sprintf("by forward %d", held[1].ID)},
		{"with another program", fmt.Sprintf("127.0.0.1:%d:81/tcp", stranger), fmt.Sprintf("by process %d (", os.Getpid())},
		{"with another program on one of all addresses", fmt.Sprintf("%d:81/tcp", stranger), fmt.Sprintf("by process %d (", os.Getpid())},
		{"with another program's UDP socket", fmt.Sprintf("127.0.0.1:%d:81/udp", datagrams), fmt.Sprintf("by process %d (", os.Getpid())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			// The search for a process has its time, in which it finds none on a busy machine.
			testenv.Eventually(testenv.Patience, func() bool {
				_, err = d.Add(t.Context(), specs(t, tt.spec))
				return err == nil || strings.Contains(err.Error(), tt.want)
			})
			if !errors.Is(err, port.ErrConflict) || !errors.Is(err, unix.EADDRINUSE) {
				t.Fatalf("got %v", err)
			}
			for _, want := range []string{"bind: address already in use", tt.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not contain %q", err, want)
				}
			}
		})
	}
	t.Run("within one batch", func(t *testing.T) {
		free, release := freePort(t)
		release()
		_, err := d.Add(t.Context(), specs(t, fmt.Sprintf("127.0.0.1:%d:80/tcp", free), fmt.Sprintf("%d:80/tcp", free)))
		want := fmt.Sprintf("by 127.0.0.1:%d:80/tcp of the same request", free)
		if !errors.Is(err, port.ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %q in it", err, want)
		}
	})
}

func TestErrorsNameTheRemedy(t *testing.T) {
	d := start(t, Options{})
	for _, tt := range []struct{ name, spec, want string }{
		{"an address that the host does not have", "192.0.2.99:0:80/tcp", "the host does not have the address 192.0.2.99"},
		{"an interface that the host does not have", "[fe80::1%gatekit-no]:0:80/tcp", "interface gatekit-no"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := d.Add(t.Context(), specs(t, tt.spec))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	t.Run("a privileged port", func(t *testing.T) {
		remedy := privilegedRemedy(80)
		for _, want := range []string{"net.ipv4.ip_unprivileged_port_start=80", "setcap cap_net_bind_service=ep /"} {
			if !strings.Contains(remedy, want) {
				t.Errorf("%q does not contain %q", remedy, want)
			}
		}
		first := firstUnprivileged()
		for number, privileged := range map[int]bool{first - 1: true, first: false} {
			spec := port.Spec{Proto: "tcp", ParentPort: number, ChildPort: 80}
			err := explain(spec, os.NewSyscallError("bind", unix.EACCES), nil, nil)
			if !errors.Is(err, unix.EACCES) || strings.Contains(err.Error(), privilegedRemedy(number)) != privileged {
				t.Errorf("port %d: %v", number, err)
			}
		}
	})
	t.Run("a host without IPv6", func(t *testing.T) {
		err := explain(specs(t, "80:80/tcp6")[0], unix.EAFNOSUPPORT, nil, nil)
		if !strings.Contains(err.Error(), "the host does not have IPv6") {
			t.Error(err)
		}
	})
	t.Run("no descriptors", func(t *testing.T) {
		err := explain(specs(t, "80:80/tcp")[0], os.NewSyscallError("socket", unix.EMFILE), nil, nil)
		if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "ulimit -Hn") {
			t.Error(err)
		}
	})
	t.Run("an invalid spec", func(t *testing.T) {
		if _, err := d.Add(t.Context(), []port.Spec{{Proto: "tcp", ParentIP: "localhost", ChildPort: 80}}); !errors.Is(err, port.ErrInvalid) {
			t.Error(err)
		}
	})
}

func TestInfo(t *testing.T) {
	info := New(Options{}).Info()
	if info.Driver != "builtin" || info.DisallowLoopbackChildIP ||
		!slices.Equal(info.Protos, []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"}) {
		t.Errorf("%+v", info)
	}
}

func TestADriverWorksWhileItRuns(t *testing.T) {
	d := New(Options{Sockets: &home{}})
	spec := specs(t, "127.0.0.1:0:80/tcp")
	type answer struct {
		statuses []port.Status
		err      error
	}
	added := make(chan answer)
	go func() { // it may come before Run
		statuses, err := d.Add(t.Context(), spec)
		added <- answer{statuses, err}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { result <- d.Run(ctx) }()
	first := <-added
	if first.err != nil {
		t.Fatal(first.err)
	}
	if err := d.Run(ctx); err == nil {
		t.Error("a driver runs twice")
	}
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", at("127.0.0.1", first.statuses[0].Spec.ParentPort)); err == nil {
		t.Error("the listener is still there after Run")
	}
	if _, err := d.Add(t.Context(), spec); err == nil {
		t.Error("Add works after Run")
	}
	if err := d.Remove(t.Context(), []int{1}, 0); err == nil {
		t.Error("Remove works after Run")
	}
	if list := d.List(); list == nil || len(list) != 0 {
		t.Errorf("the list after Run is %v", list)
	}
}

func TestAddGivesUpWithItsContext(t *testing.T) {
	for name, d := range map[string]*Driver{
		"of a driver that runs": start(t, Options{}), "of one that has not begun": New(Options{Sockets: &home{}}),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			if name == "of a driver that runs" {
				cancel()
			}
			if _, err := d.Add(ctx, specs(t, "127.0.0.1:0:80/tcp")); !errors.Is(err, ctx.Err()) || err == nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	d := start(t, Options{})
	service, _ := serveTCP(t, "127.0.0.1:0", echo)
	datagrams, _ := serveUDP(t, "127.0.0.1:0", same)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				statuses, err := d.Add(t.Context(), specs(t,
					fmt.Sprintf("127.0.0.1:0:%d/tcp", service.(*net.TCPAddr).Port),
					fmt.Sprintf("127.0.0.1:0:%d/udp", datagrams.(*net.UDPAddr).Port)))
				if err != nil {
					t.Error(err)
					return
				}
				d.List()
				c, err := net.Dial("tcp", at("127.0.0.1", statuses[0].Spec.ParentPort))
				if err == nil {
					fmt.Fprint(c, "x")
					c.Close()
				}
				if c, err = net.Dial("udp", at("127.0.0.1", statuses[1].Spec.ParentPort)); err == nil {
					fmt.Fprint(c, "x")
					c.Close()
				}
				if err := d.Remove(t.Context(), []int{statuses[0].ID, statuses[1].ID}, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
