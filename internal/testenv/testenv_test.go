package testenv

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

var _ = Probe("greet", func(args []string) int {
	fmt.Println("hello,", strings.Join(args, " "))
	return 7
})

func TestAHostRunsCommandsAsItsUser(t *testing.T) {
	h := NewHost(t)
	r := h.Run(t, h.Command("sh", "-c", "id -un; id -G; pwd; cat /etc/subuid; echo $XDG_RUNTIME_DIR; : >/dev/net/tun; exit 3"))
	u := h.User
	want := fmt.Sprintf("ada\n%d %d\n/home/ada\n%s%s\n", u.GID, u.ExtraGID, u.DefaultSubIDs(), u.RuntimeDir)
	if r.Stdout != want || r.Code != 3 {
		t.Errorf("got %v\nwant stdout: %s and exit code 3", r, want)
	}
}

func TestAHostHasANetworkAndFilesOfItsOwn(t *testing.T) {
	h := NewHost(t)
	before := h.Trace(t)
	r := h.Run(t, h.RootCommand("sh", "-c", "echo mine > /etc/hostname; ls /proc/self/net/dev_mcast; cat /proc/net/dev | wc -l"))
	if r.Code != 0 || !strings.HasSuffix(r.Stdout, "3\n") { // two lines of heading and lo
		t.Errorf("the Host has other interfaces than lo: %v", r)
	}
	if machine, err := os.ReadFile("/etc/hostname"); err == nil && string(machine) == "mine\n" {
		t.Error("the Host wrote to the machine's /etc")
	}
	h.NoTrace(t, before)
}

func TestAnOutsideReachesItsHost(t *testing.T) {
	h := NewHost(t)
	for range 2 {
		o := h.Outside(t)
		for _, pair := range [][2]netip.Addr{{o.HostAddr4, o.Addr4}, {o.HostAddr6, o.Addr6}} {
			var l net.Listener
			h.Do(t, func() (err error) {
				l, err = net.Listen("tcp", netip.AddrPortFrom(pair[0], 0).String())
				return err
			})
			defer l.Close()
			o.Do(t, func() error {
				c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != pair[1] {
					return fmt.Errorf("dialled from %v, want %v", got, pair[1])
				}
				return nil
			})
		}
	}
}

func TestAProbeIsAProgramOfTheHost(t *testing.T) {
	h := NewHost(t)
	if r := h.Run(t, h.Command("probe", "greet", "world")); r.Stdout != "hello, world\n" || r.Code != 7 {
		t.Error(r)
	}
}

func TestASignalThatEndsACommandIsReported(t *testing.T) {
	h := NewHost(t)
	p := h.Start(t, h.Command("sleep", "60"))
	if len(h.Processes()) != 1 || !Alive(p.PID()) {
		t.Errorf("processes of the Host: %v, want sleep", h.Processes())
	}
	p.Signal(syscall.SIGTERM)
	if r := p.Wait(t); r.Signal != syscall.SIGTERM || r.Code != -1 {
		t.Error(r)
	}
	h.NoProcesses(t)
}

func TestATerminalControlsItsCommand(t *testing.T) {
	h := NewHost(t)
	x := h.NewTerminal(t)
	cmd := h.Command("sh", "-c", "tty; trap 'stty size; exit 4' INT; echo ready; while :; do sleep 60; done")
	x.Attach(cmd)
	p := h.Start(t, cmd)
	x.Expect(t, "/dev/pts/")
	x.Expect(t, "ready")
	x.Resize(t, 33, 99)
	x.Type(t, "\x03")
	x.Expect(t, "33 99")
	if r := p.Wait(t); r.Code != 4 {
		t.Error(r)
	}
}

func TestLeaksAreReported(t *testing.T) {
	before := descriptors()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if got := extra(before, descriptors()); len(got) != 1 || !strings.Contains(got[0], "/dev/null") {
		t.Errorf("an open descriptor is reported as %q", got)
	}
	f.Close()
	quit := make(chan struct{})
	started := make(chan struct{})
	go func() {
		close(started)
		<-quit
	}()
	<-started
	if got := strangers(); len(got) == 0 {
		t.Error("a goroutine that waits is not reported")
	}
	close(quit)
	if !Eventually(Patience, func() bool { return len(strangers()) == 0 }) {
		t.Errorf("goroutines are reported though all have ended: %q", strangers())
	}
}
