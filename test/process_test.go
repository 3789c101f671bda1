package test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestOrphansAreReaped(t *testing.T) {
	h := testenv.NewHost(t)
	// Ten orphans end at once. The command waits until /proc shows none of them,
	// neither running nor as a zombie.
	const script = `
		n=0; while [ $n -lt 10 ]; do (sh -c 'echo $$ >> /tmp/orphans; exec sleep 0.01' &) ; n=$((n+1)); done
		until [ "$(wc -l < /tmp/orphans)" = 10 ]; do :; done
		for pid in $(cat /tmp/orphans); do
			while [ -e /proc/$pid ]; do :; done
		done
		rm /tmp/orphans; echo reaped`
	for name, flags := range map[string][]string{
		"by default in a pid namespace":     {"--pidns"},
		"when asked for in a pid namespace": {"--pidns", "--reaper=true"},
		"when asked for without one":        {"--reaper=true"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := output(t, h, append(flags, "sh", "-c", script)...); got != "reaped\n" {
				t.Error(got)
			}
		})
	}
}

func TestOrphansGoToTheReaperOnlyWhereThereIsOne(t *testing.T) {
	h := testenv.NewHost(t)
	const script = "(sleep 60 & echo $! > /tmp/orphan); echo ready; exec sleep 60"
	for name, c := range map[string]struct {
		flags  []string
		adopts bool
	}{
		"--reaper=true":  {[]string{"--reaper=true"}, true},
		"--reaper=false": {[]string{"--reaper=false"}, false},
		"--reaper=auto":  {[]string{"--reaper=auto"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(c.flags, "sh", "-c", script)...)
			g.awaitOutput(t, "ready\n")
			orphan := strings.TrimSpace(h.ReadFile(t, "/tmp/orphan"))
			status, err := os.ReadFile("/proc/" + orphan + "/status")
			if err != nil {
				t.Fatal(err)
			}
			adopted := field(t, string(status), "PPid") == fmt.Sprint(g.childPID)
			if adopted != c.adopts {
				t.Errorf("the child adopted the orphan: %v, want %v", adopted, c.adopts)
			}
			g.Signal(os.Interrupt)
			g.Wait(t)
			h.NoProcesses(t)
		})
	}
}

// familyTree is a command that starts children, orphans and daemons of all
// kinds, and waits. Each has written its name before it says "ready".
const familyTree = `
	cat > /tmp/member <<'end'
		trap '' HUP INT TERM
		echo "$1" >> /tmp/members
		exec sleep 1000
end
	sh /tmp/member child &
	(sh /tmp/member orphan &)
	setsid sh /tmp/member session &
	setsid -f sh /tmp/member daemon
	setsid -f sh -c '(setsid -f sh /tmp/member double &) ; exit 0'
	setsid -f sh -c 'exec </dev/null >/dev/null 2>&1; cd /; umask 0; exec sh /tmp/member quiet'
	until [ "$(wc -l < /tmp/members 2>/dev/null)" = 6 ]; do :; done
	rm /tmp/members /tmp/member; echo ready; `

var treeFlags = map[string][]string{
	"plain":                        {},
	"pid namespace":                {"--pidns"},
	"reaper":                       {"--reaper=true"},
	"network":                      {"--net=slirp"},
	"network and a pid namespace":  {"--net=slirp", "--pidns"},
	"network that stands apart":    {"--net=slirp", "--detach-netns"},
	"network in its own namespace": {"--net=none"},
}

func TestTheTreeDiesWithTheGate(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range treeFlags {
		for victim, pid := range map[string]func(g *gate) int{
			"parent": func(g *gate) int { return g.PID() },
			"child":  func(g *gate) int { return g.childPID },
		} {
			t.Run(name+", "+victim+" killed", func(t *testing.T) {
				g := startGate(t, h, append(flags, "sh", "-c", familyTree+"exec sleep 1000")...)
				g.awaitOutput(t, "ready\n")
				if n := len(h.Processes()); n < 9 {
					t.Fatalf("%d processes before the kill, want parent, child, command and six others: %v", n, h.Processes())
				}
				kill(t, pid(g))
				if r := g.Wait(t); victim == "child" && (r.Code != 1 || strings.Count(r.Stderr, "\n") != 1) {
					t.Errorf("got %v, want exit code 1 and a line that says what happened", r)
				}
				h.NoProcesses(t)
			})
		}
	}
}

func TestTheTreeDiesWithTheGateWhateverIsOnProc(t *testing.T) {
	h := testenv.NewHost(t)
	for name, cover := range map[string]string{
		"another file system": "mount -t tmpfs none /proc",
		"another root":        "mount -t tmpfs none /mnt; mkdir /mnt/old; cd /mnt; pivot_root . old",
	} {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, "--net=slirp", "sh", "-ec", "setsid -f sleep 1000; sleep 1000 & "+cover+"; echo ready; wait")
			g.awaitOutput(t, "ready\n")
			g.Kill()
			g.Wait(t)
			h.NoProcesses(t)
		})
	}
}

func TestNothingOutlivesTheCommand(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range treeFlags {
		t.Run(name, func(t *testing.T) {
			before := trace(t, h)
			if r := runGate(t, h, append(flags, "sh", "-c", familyTree+"exit 3")...); r.Code != 3 {
				t.Error(r)
			}
			h.NoTrace(t, before)
		})
	}
}

// A program that has entered the gate's user namespace, and not its PID namespace,
// does not die with that.
func TestWhatHasEnteredTheGateDoesNotOutliveIt(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range treeFlags {
		t.Run(name, func(t *testing.T) {
			g := startGate(t, h, append(flags, "sleep", "infinity")...)
			p := h.Start(t, h.Command("nsenter", "-U", "--preserve-credentials", "-t", fmt.Sprint(g.childPID), "sh", "-c", "echo started; exec sleep infinity"))
			awaitLine(t, p, "started")
			g.stop(t)
			p.Wait(t)
			h.NoProcesses(t)
		})
	}
}

func TestGatesInALoopLeaveNothingBehind(t *testing.T) {
	h := testenv.NewHost(t)
	before := trace(t, h)
	all := []string{"--net=slirp", "--pidns", "--cgroupns", "--utsns", "--ipcns", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave"}
	for i := range 50 {
		var flags []string
		if i%2 == 1 {
			flags = all
		}
		if r := runGate(t, h, append(flags, "true")...); r.Code != 0 || r.Stdout+r.Stderr != "" {
			t.Fatalf("gate %d: %v", i, r)
		}
	}
	h.NoTrace(t, before)
}

// serve accepts one connection on each socket that was passed and writes its
// name to it.
var _ = testenv.Probe("serve", func(args []string) int {
	if want := fmt.Sprint(os.Getpid()); os.Getenv("LISTEN_PID") != want {
		fmt.Printf("LISTEN_PID is %q, want %s\n", os.Getenv("LISTEN_PID"), want)
		return 1
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if fmt.Sprint(len(names)) != os.Getenv("LISTEN_FDS") {
		fmt.Printf("LISTEN_FDS is %q, LISTEN_FDNAMES %q\n", os.Getenv("LISTEN_FDS"), names)
		return 1
	}
	for i, name := range names {
		l, err := net.FileListener(os.NewFile(uintptr(3+i), name))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		conn, err := l.Accept()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		_, _ = conn.Write([]byte(name))
		conn.Close()
	}
	return 0
})

func TestPassedSocketsReachTheCommand(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range map[string][]string{
		"plain":                     {},
		"pid namespace":             {"--pidns"},
		"network":                   {"--net=slirp", "--copy-up=/etc"},
		"network that stands apart": {"--net=slirp", "--detach-netns"},
	} {
		t.Run(name, func(t *testing.T) {
			var listeners []*net.TCPListener
			// systemd sets LISTEN_PID to the process that becomes gatekit.
			cmd := h.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec gatekit "$@"`, "sh"}, append(flags, "probe", "serve")...)...)
			cmd.Env = append(cmd.Env, "LISTEN_FDS=2", "LISTEN_FDNAMES=web:api")
			for range 2 {
				l, f := listenToPass(t)
				listeners = append(listeners, l)
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
			p := h.Start(t, cmd)
			for i, want := range []string{"web", "api"} {
				if got := readAll(t, p, listeners[i].Addr().String()); got != want {
					t.Errorf("socket %d answers %q, want %q", 3+i, got, want)
				}
			}
			if r := p.Wait(t); r.Code != 0 {
				t.Error(r)
			}
		})
	}
}

// listenToPass makes a listener, and its file, until the end of the test.
func listenToPass(t *testing.T) (*net.TCPListener, *os.File) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return l, f
}

// readAll reads what a server says, and fails the test when its process ends
// before.
func readAll(t *testing.T, p *testenv.Process, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, testenv.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-p.Ended():
			// What it wrote is in the socket already.
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		case <-done:
		}
	}()
	var text strings.Builder
	buf := make([]byte, 100)
	for {
		n, err := conn.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			return text.String()
		}
	}
}

func TestPassedSocketsAreTheOnlyExtraDescriptors(t *testing.T) {
	h := testenv.NewHost(t)
	_, f := listenToPass(t)
	for name, c := range map[string]struct{ pid, want string }{
		"one of two is passed":                   {"$$", "0\n1\n2\n3\n4\n"},
		"none when they are for another process": {"1", "0\n1\n2\n3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := h.Command("sh", "-c", "LISTEN_PID="+c.pid+" LISTEN_FDS=1 exec gatekit --net=slirp ls /proc/self/fd")
			cmd.ExtraFiles = []*os.File{f, f}
			if r := h.Run(t, cmd); r.Stdout != c.want {
				t.Errorf("descriptors of the command: %v\nwant %q, the last of them the directory that ls reads", r, c.want)
			}
		})
	}
}

func TestACommandThatCannotTakeSocketsOverSaysWhy(t *testing.T) {
	h := testenv.NewHost(t)
	h.WriteFile(t, "/srv/no-program", "\x01\x02\x03\x04", 0o755)
	l, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := h.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec gatekit /srv/no-program")
	cmd.ExtraFiles = []*os.File{l}
	before := trace(t, h)
	badInput{nil, []string{"/srv/no-program", "program"}}.check(t, h.Run(t, cmd), 126)
	h.NoTrace(t, before)
}

// notify sends its argument to NOTIFY_SOCKET (sd_notify(3)).
var _ = testenv.Probe("notify", func(args []string) int {
	if err := notify(args[0]); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
})

// notify tells the service manager a state, as sd_notify(3) does.
func notify(state string) error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

func TestTheServiceManagerIsNotified(t *testing.T) {
	h := testenv.NewHost(t)
	for name, flags := range map[string][]string{
		"plain":                    {},
		"network, pids":            {"--net=slirp", "--pidns", "--copy-up=/etc"},
		"under a copied-up /run":   {"--net=slirp", "--copy-up=/run"},
		"under an overlay of /run": {"--net=slirp", "--copy-up=/run", "--copy-up-mode=overlay"},
	} {
		t.Run(name, func(t *testing.T) {
			path := h.User.RuntimeDir + "/notify"
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.Path(path), Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(h.Path(path))
			defer manager.Close()
			if err := os.Chmod(h.Path(path), 0o666); err != nil {
				t.Fatal(err)
			}
			cmd := h.Command("gatekit", append(flags, "probe", "notify", "READY=1")...)
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
			if r := h.Run(t, cmd); r.Code != 0 {
				t.Fatal(r)
			}
			if err := manager.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			n, err := manager.Read(buf)
			if err != nil || string(buf[:n]) != "READY=1" {
				t.Errorf("the service manager got %q, %v; want READY=1", buf[:n], err)
			}
		})
	}
}

func TestTheCommandInheritsWhatAProcessInherits(t *testing.T) {
	h := testenv.NewHost(t)
	// Other values than a login's, so that they are not there by chance. Of the
	// signals that the caller ignores, Go's runtime keeps SIGHUP and SIGINT so.
	const set = `cd /usr/lib; umask 027; ulimit -Sn 777; ulimit -Hn 3000; ulimit -c 0; trap '' HUP INT; exec "$@"`
	const show = `pwd; umask; ulimit -Sn; ulimit -Hn; ulimit -c; grep -E '^Sig(Blk|Ign):' /proc/self/status; nice; cat; echo "$0 $*"`
	run := func(command ...string) string {
		cmd := h.Command("nice", append([]string{"-n", "3", "sh", "-c", set, "sh"}, command...)...)
		cmd.Stdin = strings.NewReader("from stdin\n")
		r := h.Run(t, cmd)
		if r.Code != 0 || r.Stderr != "" {
			t.Fatal(r)
		}
		return r.Stdout
	}
	command := []string{"sh", "-c", show, "name", "", "--flag", "a b", "--", "-p"}
	want := run(command...)
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			if got := run(append(append([]string{"gatekit"}, flags...), command...)...); got != want {
				t.Errorf("inside:\n%s\nwant what it is outside:\n%s", got, want)
			}
		})
	}
}

func TestACommandLineMayBeAsLongAsTheKernelTakesIt(t *testing.T) {
	h := testenv.NewHost(t)
	arguments := make([]string, 20000) // half a megabyte with the zeros
	for i := range arguments {
		arguments[i] = fmt.Sprintf("argument number %08d", i)
	}
	command := append([]string{"sh", "-c", `echo "$#"; eval "echo \"\${$#}\""`, "sh"}, arguments...)
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			if got, want := output(t, h, append(flags, command...)...), "20000\nargument number 00019999\n"; got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
		})
	}
}

func TestAGateOutlivesTheReaderOfItsLogs(t *testing.T) {
	h := testenv.NewHost(t)
	// Descriptor 2 is a pipe that nobody reads. The command ends as it does of
	// SIGPIPE outside.
	const script = `mkfifo /tmp/logs; exec 3<>/tmp/logs 2>/tmp/logs 3<&-; rm /tmp/logs; exec "$@"`
	for name, flags := range processFlags {
		t.Run(name, func(t *testing.T) {
			command := append([]string{"-c", script, "sh", "gatekit", "--debug"}, flags...)
			if r := h.Run(t, h.Command("sh", append(command, "sh", "-c", "echo lost >&2; exit 7")...)); r.Code != 128+13 {
				t.Errorf("a command that writes there: %v, want it killed by SIGPIPE", r)
			}
			if r := h.Run(t, h.Command("sh", append(command, "sh", "-c", "exit 7")...)); r.Code != 7 {
				t.Errorf("one that does not: %v, want exit code 7", r)
			}
		})
	}
}

func TestGatesRunSideBySide(t *testing.T) {
	h := testenv.NewHost(t)
	before := trace(t, h)
	var gates []*testenv.Process
	for i := range 5 {
		gates = append(gates, h.Start(t, h.Command("gatekit", "--net=slirp", "--pidns", "sh", "-c", fmt.Sprintf("sleep 0.1; exit %d", i))))
	}
	for i, p := range gates {
		if r := p.Wait(t); r.Code != i || r.Stderr != "" {
			t.Errorf("gate %d: %v", i, r)
		}
	}
	h.NoTrace(t, before)
}
