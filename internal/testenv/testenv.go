// Package testenv holds what tests share: hosts made of namespaces, a
// throw-away user with subordinate ids, the built binaries, leak checks and
// waiting. Nothing but tests imports it.
//
// Goals: a test never touches the machine's own network, files, users or
// devices; tests of several packages run at the same time; a test binary that
// is killed leaves nothing but directories under the temp directory, which a
// later one removes.
//
// A Host is an OS thread with a mount and a network namespace of its own. Its
// /etc, /run, /tmp, /home and /usr/local/bin are directories of the Host, laid
// over the machine's by bind mounts that nobody else sees, so /etc/subuid,
// /etc/resolv.conf or a missing set-uid bit can be whatever a test needs.
// Its user exists in that /etc/passwd only. Commands are started on the thread
// and so live in the Host; real root enters, and drops to the user.
//
//	machine                 Host (mount + net ns)           Outside (net ns)
//	<temp>/etc  --bind-->   /etc                            eth0 198.51.100.x
//	<temp>/run  --bind-->   /run  (XDG_RUNTIME_DIR)           |
//	<temp>/bin  --bind-->   /usr/local/bin (gatekit, probe)   |
//	                        eth0 ---------- veth -------------+
//
// Limits: Hosts need real root. Unit tests use Main, Skip and the waiters only,
// which need no privilege.
package testenv

import (
	"os"
	"testing"
)

// Strict reports whether a skipped test counts as failed, as in CI:
// GATEKIT_TEST_STRICT=1.
func Strict() bool { return os.Getenv("GATEKIT_TEST_STRICT") == "1" }

// Skip skips the test, or fails it under Strict. proof says what shows that
// this kernel or machine cannot run the test: an error that a system call
// gave, not a guess. An empty proof fails the test.
func Skip(t testing.TB, proof string) {
	t.Helper()
	if proof == "" {
		t.Fatal("testenv.Skip: a skip needs a proof that the test cannot run here")
	}
	if Strict() {
		t.Fatalf("GATEKIT_TEST_STRICT=1 allows no skip: %s", proof)
	}
	t.Skip(proof)
}

// RequireRoot skips the test where it does not run as root, and fails it under
// Strict.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "geteuid() is not 0: the test makes namespaces and users, which needs real root (sudo -E go test ...)")
	}
}
