package main

// The gate. k3s has a file like this one, and what it changes for Gatekit are lines of
// this one: docs/migrating-from-rootlesskit.md.

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/gatekit/gatekit/pkg/api"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network/slirp"
	"github.com/gatekit/gatekit/pkg/parent"
)

// childEnv is how the program knows inside that it is the service, and where the
// gate's API is.
const childEnv = "_EMBED_ROOTLESS_SOCK"

// sock is the API of the gate that the service is in.
var sock string

// settings are what users choose of the gate.
type settings struct {
	cidr                            string
	mtu                             int
	enableIPv6, disableHostLoopback bool
}

// rootless returns in the service only, inside a gate. As the program that the user
// starts it runs that gate, and ends with the service's exit code.
func rootless(dataDir string, s settings) error {
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Logger: slog.Default()}))
	}
	if sock = os.Getenv(childEnv); sock != "" {
		return os.Unsetenv(childEnv) // which is not for programs that the service starts
	}
	parentOpt, err := createParentOpt(filepath.Join(dataDir, "rootless"), s)
	if err != nil {
		return err
	}
	if err := os.Setenv(childEnv, filepath.Join(parentOpt.StateDir, api.SocketName)); err != nil {
		return err
	}
	err = parent.Run(context.Background(), *parentOpt)
	var exit *parent.ExitError
	switch {
	case errors.As(err, &exit): // the service has said why
		os.Exit(exit.Status())
	case err == nil:
		os.Exit(0)
	}
	return err
}

// createParentOpt describes the gate.
func createParentOpt(stateDir string, s settings) (*parent.Options, error) {
	opt := &parent.Options{
		Command:        append([]string{"/proc/self/exe"}, os.Args[1:]...), // wherever it is installed
		StateDir:       stateDir,
		CreatePIDNS:    true, // whose first process collects orphans
		CreateCgroupNS: true,
		CreateUTSNS:    true,
		CreateIPCNS:    true,
		CopyUpDirs:     []string{"/etc", "/var/run", "/run", "/var/lib"},
		Signals:        parent.ForwardableSignals(),
		Stopped:        parent.StopWithCommand, // Ctrl-Z
		Logger:         slog.Default(),
	}
	ipnet, err := netip.ParsePrefix(s.cidr)
	if err != nil {
		return nil, err
	}
	// The builtin port driver comes with a network, and clients keep their addresses.
	opt.Network, err = slirp.New(slirp.Options{
		IPv4:         ipnet, // the service has host 100 of it
		MTU:          s.mtu,
		HostLoopback: slirp.HostLoopback{All: !s.disableHostLoopback},
		DisableIPv6:  !s.enableIPv6,
		SourceIP:     true,
		Logger:       opt.Logger,
	})
	return opt, err
}
