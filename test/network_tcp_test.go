package test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// large is the size of a large transfer: many windows and buffers, in bytes.
const large = 24 << 20

func TestFilesComeFromAServerOutside(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	content := pattern(large)
	if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	port := s.fileServer(t, dir)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	want := fmt.Sprintf("%x", sha256.Sum256(content))
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		g.run(t, "curl", "-sS", "--fail", "-o", "/tmp/fetched", url(outside, port, "file"))
		if sum := g.run(t, "sha256sum", "/tmp/fetched"); !strings.HasPrefix(sum, want) {
			t.Errorf("the file came with the checksum %s, want %s", sum, want)
		}
	})
	g.stop(t)
}

func TestFilesGoToAServerOutside(t *testing.T) {
	s := newSite(t)
	content := s.randomFile(t, "/srv/file", large)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		fmt.Fprintf(w, "%d %v %x", n, err, hash.Sum(nil))
	})}
	var listener net.Listener
	s.outside.Do(t, func() (err error) {
		listener, err = net.Listen("tcp", "[::]:80")
		return err
	})
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	want := fmt.Sprintf("%d <nil> %x", large, sha256.Sum256([]byte(content)))
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		if got := g.run(t, "curl", "-sS", "--fail", "-T", "/srv/file", url(outside, 80, "file")); got != want {
			t.Errorf("the server got %s, want %s", got, want)
		}
	})
	g.stop(t)
}

func TestBytesGoBothWaysAtOnce(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		g.run(t, "probe", "exchange", at(outside, int(port)), strconv.Itoa(large))
		g.run(t, "probe", "exchange", at(outside, int(port)), "0")
	})
}

// Each side may end its half of a connection, and go on reading: socat reads
// its stdin, and what the server says, until both have ended.
func TestEachSideMayEndItsHalfFirst(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		t.Run("inside", func(t *testing.T) {
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				got, err := io.ReadAll(conn) // until the end
				fmt.Fprintf(conn, "%d bytes, %s", len(got), outcome(err))
			})
			client := g.in("socat", "-t30", "-", "TCP:"+server.String())
			client.Stdin = strings.NewReader(strings.Repeat("x", 100_000))
			if r := s.Run(t, client); r.Stdout != "100000 bytes, ok" {
				t.Error(r)
			}
		})
		t.Run("outside", func(t *testing.T) {
			got := make(chan string, 1)
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				_, _ = conn.Write([]byte("goodbye"))
				_ = conn.CloseWrite()
				b, err := io.ReadAll(conn)
				got <- fmt.Sprintf("%d bytes, %s", len(b), outcome(err))
			})
			client := g.in("socat", "-t30", "-", "TCP:"+server.String())
			stdin, keys := io.Pipe()
			client.Stdin = stdin
			p := s.Start(t, client)
			awaitLine(t, p, "goodbye")
			// The server's half has ended; ours goes on.
			if _, err := io.WriteString(keys, strings.Repeat("x", 100_000)); err != nil {
				t.Error(err)
			}
			keys.Close()
			if what := receive(t, got, "the server"); what != "100000 bytes, ok" {
				t.Errorf("the server got %s", what)
			}
			if r := p.Wait(t); r.Code != 0 {
				t.Error(r)
			}
		})
	})
}

func TestResetsAreCarriedAcross(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		t.Run("from outside", func(t *testing.T) {
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				_, _ = conn.Read(make([]byte, 1)) // now the client has its connection
				_ = conn.SetLinger(0)
			})
			if got := g.run(t, "probe", "read", server.String()); got != " connection reset by peer\n" {
				t.Errorf("the client sees %q", got)
			}
		})
		t.Run("from inside", func(t *testing.T) {
			ended := make(chan error, 1)
			server := serveTCP(t, s.outside, at(outside, 0), func(conn *net.TCPConn) {
				_, _ = conn.Write([]byte("x"))
				_, err := conn.Read(make([]byte, 1))
				ended <- err
			})
			g.run(t, "probe", "reset", server.String())
			if got := outcome(receive(t, ended, "the end at the server")); got != "connection reset by peer" {
				t.Errorf("the server sees %q", got)
			}
		})
	})
}

// A refused connection is refused inside too. If it were left unanswered, the
// probe would try for two minutes.
func TestARefusedConnectionIsReset(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		closed := at(outside, 9)
		if got := g.run(t, "probe", "connect", closed); got != closed+" connection refused\n" {
			t.Error(got)
		}
		if r := s.Run(t, g.in("curl", "-sS", "http://"+closed)); r.Code != 7 { // "Failed to connect to host"
			t.Errorf("curl: %v, want exit code 7", r)
		}
	})
}

func TestAnAddressThatDoesNotAnswerStallsNobody(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.outside, "[::]:0", echoTCP).Port()
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	var waiting []*testenv.Process
	var keys []io.Closer
	for _, hole := range blackholes {
		cmd := g.in("probe", "pending", "1000", at(hole, 80))
		stdin, w := io.Pipe()
		cmd.Stdin = stdin
		p := s.Start(t, cmd)
		awaitLine(t, p, "begun\n")
		waiting, keys = append(waiting, p), append(keys, w)
	}
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		g.run(t, "probe", "exchange", at(outside, int(port)), "100000")
		g.run(t, "probe", "connect", at(outside, 9))
	})
	for i, p := range waiting {
		keys[i].Close()
		if r := p.Wait(t); r.Stdout != "begun\n0 connected, 0 failed\n" {
			t.Errorf("connections to %v: %v, want none to have come to anything", blackholes[i], r)
		}
	}
	g.stop(t)
}

// The host's own addresses are no loopback: what listens there is reached.
func TestTheHostIsReachedAtItsAddresses(t *testing.T) {
	s := newSite(t)
	port := serveTCP(t, s.Host, "[::]:0", echoTCP).Port()
	g := startGate(t, s.Host, "--net=slirp", "sleep", "infinity")
	s.both(t, func(t *testing.T, _, host netip.Addr) {
		g.run(t, "probe", "exchange", at(host, int(port)), "100000")
	})
}

// One stream each way; how fast is the benchmark's to say.
func TestIperf3(t *testing.T) {
	s := newSite(t)
	g := startGate(t, s.Host, "--net=slirp", "--mtu=1500", "sleep", "infinity")
	const amount = 64 << 20
	// The port is iperf3's own; this machine is the test's alone.
	server := s.outside.Start(t, s.outside.Command("iperf3", "--server", "--forceflush"))
	awaitLine(t, server, "Server listening")
	s.both(t, func(t *testing.T, outside, _ netip.Addr) {
		for _, direction := range [][]string{{}, {"--reverse"}} {
			out := g.run(t, append([]string{"iperf3", "--json", "--bytes", strconv.Itoa(amount), "--client", outside.String()}, direction...)...)
			var result struct {
				End struct {
					Received struct{ Bytes int } `json:"sum_received"`
				}
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if result.End.Received.Bytes < amount/2 {
				t.Errorf("%q: %d bytes were received", direction, result.End.Received.Bytes)
			}
		}
	})
}
