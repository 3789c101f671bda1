// Package test holds the integration tests: they run the built binaries as an
// unprivileged user, on Hosts made of namespaces (internal/testenv), and look at
// what the user would see. Each sentence of what the gate promises has a test
// here that fails without it. Unit tests are with the code they test.
//
//	identity_test.go    ids, groups, capabilities, descriptors
//	namespaces_test.go  namespaces, propagation, /sys, cgroups
//	copyup_test.go      directories made writable
//	files_test.go       resolv.conf, hosts, state dir, environment
//	signals_test.go     signals, exit codes
//	terminal_test.go    terminals and job control
//	process_test.go     reaping, death of the tree, activation, notification
//	badinput_test.go    wrong usage
//	badhost_test.go     hosts that cannot run a gate
//	kill_test.go        SIGKILL at random moments
//	network_*_test.go   the network: TCP, UDP, ICMP, DNS, policy, options, modes
//	persona_test.go     our programs under RootlessKit's names
//	hostnic_*_test.go   network cards: lending, giving back, gates on them
//	ports_*_test.go     forwards: reach, source addresses, changes, restoring
//	docker_*_test.go    Docker on our rootlesskit: ports, clients, names, restarts, its document
//	containerd_test.go  containerd by nerdctl's calls, and its containers
//	systemd_test.go     the user units of packaging/, under systemd
//	package_test.go     the Debian package and the AppArmor profile
//	engines_test.go     BuildKit's, usernetes' and dind-rootless' command lines, with a stand-in
//	nodes_test.go       two gates on two machines, an overlay between them
//	podman_*_test.go    Podman in a gate, and beside one
//	gatectl_*_test.go   what gatectl prints, finds and joins
//	api_*_test.go       the API against its document
package test

import (
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
