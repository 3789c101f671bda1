package gates

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVersionsAreFoundInWhatProgramsPrint(t *testing.T) {
	for _, c := range []struct{ name, out, want string }{
		{"gatekit", "gatekit version 0.1.0\n", "0.1.0"},
		{"slirp4netns", "slirp4netns version 1.2.0\ncommit: 656041d\nlibslirp: 4.7.0\n", "1.2.0"},
		{"pasta of a distribution", "pasta 0.0~git20230309.7c7625d-1\nCopyright Red Hat\n", "0.0~git20230309.7c7625d-1"},
		{"pasta that does not know", "pasta unknown version\nCopyright Red Hat\n", "of unknown version"},
		{"Docker", "Docker version 20.10.24+dfsg1, build 5d6db84\n", "20.10.24+dfsg1"},
		{"nothing", "", "of unknown version"},
		{"the word alone", "version", "of unknown version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseVersion(c.out); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestGatesAreFoundByPathAndTheOthersNamed(t *testing.T) {
	program := filepath.Join(t.TempDir(), "gate")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho gate version 7.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	paths := Paths{Gatekit: program, RootlessKit: program, Slirp4netns: program, Pasta: "no-such-program"}
	found, missing := Find(t.Context(), paths, Slirp4netns, Gatekit, Pasta, "other")
	var got []string
	for _, g := range found {
		got = append(got, g.Name+" "+g.Version)
	}
	if diff := cmp.Diff([]string{"slirp4netns 7.1 with RootlessKit 7.1", "gatekit 7.1"}, got); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if len(missing) != 2 || !strings.Contains(missing[0].Error(), "no-such-program") || !strings.Contains(missing[1].Error(), "no such gate") {
		t.Errorf("missing: %v", missing)
	}
}

func TestEveryGateIsGivenTheSameWork(t *testing.T) {
	work := Work{
		MTU:      1500,
		StateDir: "/state",
		Forwards: []Forward{
			{"tcp", netip.MustParseAddrPort("0.0.0.0:8000"), 7000},
			{"udp", netip.MustParseAddrPort("127.0.0.1:8001"), 7001},
		},
		Command: []string{"true", "--flag"},
	}
	few := Work{MTU: 9000, StateDir: "/state", IDs: IDs{1000, 2000, 500}, Command: []string{"true"}}
	for _, c := range []struct {
		name string
		got  []string
		want string
	}{
		{"gatekit of a user with few ids", gatekit("gatekit", few),
			"gatekit --net=slirp --mtu=9000 --state-dir=/state --uidmap=0:1000:1 --uidmap=1:2000:500 --gidmap=0:1000:1 --gidmap=1:2000:500 true"},
		{"gatekit", gatekit("gatekit", work),
			"gatekit --net=slirp --mtu=1500 --state-dir=/state --publish=0.0.0.0:8000:7000/tcp --publish=127.0.0.1:8001:7001/udp true --flag"},
		{"slirp4netns", slirp4netns("rootlesskit", "slirp4netns", work),
			"rootlesskit --net=slirp4netns --slirp4netns-binary=slirp4netns --mtu=1500 --state-dir=/state --port-driver=builtin" +
				" --publish=0.0.0.0:8000:7000/tcp --publish=127.0.0.1:8001:7001/udp true --flag"},
		{"pasta", pasta("pasta", work),
			"pasta --config-net --foreground --quiet --mtu 1500 --address 10.0.2.100 --netmask 24 --gateway 10.0.2.2" +
				" --tcp-ports 8000:7000 --udp-ports 127.0.0.1/8001:7001 --tcp-ns none --udp-ns none -- true --flag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, strings.Join(c.got, " ")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
