package parent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
)

func noPorts(port.Sockets) port.Driver { return nil }

func TestOptionsThatCanNeverWorkAreWrongUsage(t *testing.T) {
	no := false
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"a name that is none":          {Options{Command: []string{"x"}, Name: "a/b"}, "a/b"},
		"no command":                   {Options{}, "Options.Command"},
		"detached without a network":   {Options{Command: []string{"x"}, DetachNetNS: true}, "Options.DetachNetNS"},
		"ports of the host's network":  {Options{Command: []string{"x"}, Ports: noPorts}, "Options.Network=host"},
		"forwards without a driver":    {Options{Command: []string{"x"}, Network: network.None(), DisablePorts: true, Publish: []port.Spec{{}}}, "Options.Publish"},
		"forwards of the host's":       {Options{Command: []string{"x"}, PublishAuto: true}, "Options.Publish"},
		"a driver and none":            {Options{Command: []string{"x"}, Network: network.None(), Ports: noPorts, DisablePorts: true}, "Options.DisablePorts"},
		"a forward that cannot be":     {Options{Command: []string{"x"}, Network: network.None(), Ports: noPorts, Publish: []port.Spec{{Proto: "sctp"}}}, "sctp"},
		"restoring without a driver":   {Options{Command: []string{"x"}, StateDir: "d", RestorePorts: true}, "Options.RestorePorts needs a port driver"},
		"restoring from nowhere":       {Options{Command: []string{"x"}, Network: network.None(), Ports: noPorts, RestorePorts: true}, "Options.StateDir"},
		"copy-up of /tmp":              {Options{Command: []string{"x"}, CopyUpDirs: []string{"/tmp"}}, "/tmp"},
		"an unknown propagation":       {Options{Command: []string{"x"}, Propagation: "wide"}, "wide"},
		"evacuation alone":             {Options{Command: []string{"x"}, EvacuateCgroup2: "a"}, "Options.CreatePIDNS"},
		"evacuation to a path":         {Options{Command: []string{"x"}, EvacuateCgroup2: "a/b", CreatePIDNS: true, CreateCgroupNS: true}, "slash"},
		"process 1 that does not reap": {Options{Command: []string{"x"}, CreatePIDNS: true, Reaper: &no}, "Options.Reaper"},
		"one kind of map":              {Options{Command: []string{"x"}, UIDMap: []IDMap{{0, 1, 1}}}, "need each other"},
		"single id and maps":           {Options{Command: []string{"x"}, SingleID: true, UIDMap: []IDMap{{0, 1, 1}}}, "Options.SingleID"},
		"an unknown source of ids":     {Options{Command: []string{"x"}, SubIDSource: "ldap"}, "ldap"},
	} {
		err := c.o.Validate()
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheNamespacesAreThoseAskedFor(t *testing.T) {
	const always = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
	for name, c := range map[string]struct {
		o    Options
		want uintptr
	}{
		"the least":         {Options{}, always},
		"a network":         {Options{Network: network.None()}, always | unix.CLONE_NEWNET},
		"a detached one":    {Options{Network: network.None(), DetachNetNS: true}, always},
		"all of the others": {Options{CreatePIDNS: true, CreateCgroupNS: true, CreateUTSNS: true, CreateIPCNS: true}, always | unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC},
	} {
		c.o.setDefaults()
		if got := c.o.cloneFlags(); got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}

func TestTheEnvironmentIsTheCallersWithOurVariables(t *testing.T) {
	got := environment([]string{"PATH=/bin", "GATEKIT_STATE_DIR=/outer", "ROOTLESSKIT_PARENT_EUID=7", "GATEKIT_OTHER=kept", "EMPTY="}, defaultEnvPrefixes, "/run/gate")
	for _, want := range []string{"PATH=/bin", "GATEKIT_OTHER=kept", "EMPTY=", "GATEKIT_STATE_DIR=/run/gate", "ROOTLESSKIT_STATE_DIR=/run/gate"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if slices.Contains(got, "GATEKIT_STATE_DIR=/outer") || slices.Contains(got, "ROOTLESSKIT_PARENT_EUID=7") {
		t.Errorf("an outer gate's variables are still there: %v", got)
	}
}

func TestAnEmbedderNamesTheVariables(t *testing.T) {
	got := environment([]string{"EMBED_STATE_DIR=/outer", "GATEKIT_STATE_DIR=/outer", "EMBED_OTHER=kept"}, []string{"EMBED_"}, "/run/gate")
	want := []string{"EMBED_OTHER=kept", "EMBED_STATE_DIR=/run/gate", fmt.Sprint("EMBED_PARENT_EUID=", os.Geteuid()), fmt.Sprint("EMBED_PARENT_EGID=", os.Getegid())}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
