package parent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gatekit/gatekit/internal/statedir"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/copyup"
	"github.com/gatekit/gatekit/pkg/network"
	"github.com/gatekit/gatekit/pkg/port"
	"github.com/gatekit/gatekit/pkg/port/builtin"
)

// ErrUsage marks options that can never work, whatever the host.
var ErrUsage = errors.New("wrong usage")

// Options describe a gate. The zero value of every field but Command is good: a
// gate in the host's network, with the caller mapped to root and all of its
// subordinate ids after it.
type Options struct {
	// Command and its arguments. It is looked up in PATH inside.
	Command []string

	// StateDir is where the gate keeps its files: the API's socket, api.SocketName, and
	// those of docs/reference.md. It is made where it is missing. One gate has it at a
	// time; what one that was killed left there is taken over. Empty makes a new one
	// below $XDG_RUNTIME_DIR/gatekit or, without that, gatekit-UID in the temporary
	// directory, and removes it at the end. There is also noted where the others are,
	// for gatectl list.
	StateDir string

	// Name names the gate for gatectl --gate: up to 63 letters, digits, dots, dashes
	// and underscores, the first a letter or a digit. Empty gives it none.
	Name string

	// Version is the version that the API reports of this program. Empty is none.
	Version string

	// Network is the network driver, which runs once: it is made for one gate. nil
	// means network.Host().
	Network network.Driver

	// Ports makes the port driver of the sockets that the child provides; it needs a
	// Network with a namespace. nil means the builtin driver with such a Network, which
	// opens flows in the names of clients where the Network can, and none with another.
	Ports func(port.Sockets) port.Driver

	// DisablePorts leaves the port driver out. The gate then forwards no ports.
	DisablePorts bool

	// Publish are forwards to put in place before the command starts, all of them, or
	// there is no gate. Empty is none.
	Publish []port.Spec

	// PublishAuto publishes on 127.0.0.1 what starts to listen inside, and takes
	// it back when it stops. It can be turned on and off over the API, too.
	PublishAuto bool

	// RestorePorts brings back the forwards that the last gate in StateDir had
	// when it ended or was killed, after those of Publish. One that cannot come
	// back is a warning. It keeps the list for the next gate, too.
	RestorePorts bool

	// CopyUpDirs are directories of the host to make writable inside, absolute paths in
	// any order (package copyup). Empty is none.
	CopyUpDirs []string

	// CopyUpMode is copyup.ModeSymlink, also for "", or copyup.ModeOverlay.
	CopyUpMode string

	// Propagation is "private", "rprivate", "slave", "rslave", "shared" or
	// "rshared", of all mounts inside (mount_namespaces(7)). Empty is "rprivate".
	Propagation string

	// DetachNetNS keeps the network namespace on <StateDir>/netns and runs the
	// command in the host's.
	DetachNetNS bool

	// CreatePIDNS, CreateCgroupNS, CreateUTSNS and CreateIPCNS make further namespaces
	// (namespaces(7)). A PID namespace brings a /proc of its own, and a cgroup
	// namespace cgroup2 mounts.
	CreatePIDNS, CreateCgroupNS, CreateUTSNS, CreateIPCNS bool

	// Reaper says whether the child collects orphans. nil means: with CreatePIDNS, where
	// it has to.
	Reaper *bool

	// EvacuateCgroup2 is the name of a cgroup below the current one to move the
	// gate to, so that the current one can delegate its controllers. Empty
	// moves nothing. It needs CreatePIDNS and CreateCgroupNS.
	EvacuateCgroup2 string

	// SubIDSource says where the caller's subordinate ids come from: "static"
	// (/etc/subuid and /etc/subgid), "dynamic" (getsubids(1)), or "auto" and
	// empty (as /etc/nsswitch.conf says).
	SubIDSource string

	// UIDMap and GIDMap map ids explicitly. Empty means: 0 to the caller, and
	// from 1 on all its subordinate ids.
	UIDMap, GIDMap []IDMap

	// SingleID maps the caller alone, which needs no subordinate ids and no
	// newuidmap; setgroups(2) is denied inside.
	SingleID bool

	// AddHosts are further entries for /etc/hosts, before the host's. Empty is none.
	AddHosts []HostEntry

	// ListenFiles are sockets of socket activation to pass on (sd_listen_fds(3)).
	// LISTEN_FDS and LISTEN_PID tell the command of them; LISTEN_FDNAMES is as in
	// Env. The gate closes them. Empty passes none, and leaves all three as they are.
	ListenFiles []*os.File

	// Stdin, Stdout and Stderr are the command's; the child, which comes before it,
	// has them, too, and so what child.Main's Logger writes to os.Stderr goes there.
	// nil means those of this process. Whatever they are, a terminal that controls
	// this process controls the command: its keys are signals to both.
	Stdin, Stdout, Stderr *os.File

	// Env is the command's environment, to which the gate adds its own
	// variables. nil means that of this process.
	Env []string

	// EnvPrefixes begin the names of the gate's variables, which end in STATE_DIR,
	// PARENT_EUID and PARENT_EGID (the ids of this process). Empty means "GATEKIT_"
	// and "ROOTLESSKIT_", which container engines look for.
	EnvPrefixes []string

	// Signals are those of this process that Run asks for (os/signal), as long as it
	// runs, and sends to the command: ForwardableSignals, or some of them. While the
	// command does not run yet, SIGINT, SIGTERM, SIGHUP and SIGQUIT end the gate. Empty
	// leaves all signals to the program.
	Signals []os.Signal

	// Stopped is called when a signal, as a rule of the terminal's job control,
	// has stopped the command, for a program that wants to stop with it. When it
	// returns true the command is continued: StopWithCommand. nil does nothing.
	Stopped func(syscall.Signal) bool

	// StopTimeout is how long the command may take to end after the SIGTERM that
	// it gets when the gate has to end. 0 means 10 s.
	StopTimeout time.Duration

	// ChildArgs follow child.Name in the arguments with which this program is
	// executed again to be the child; for the program's own use. nil means this
	// program's own arguments, so that one which asks child.IsChild behind its flags
	// gets there.
	ChildArgs []string

	// Logger receives warnings, and what happens at debug level. nil discards.
	Logger *slog.Logger
}

// propagations are the values of Options.Propagation (mount_namespaces(7)).
var propagations = []string{"private", "rprivate", "slave", "rslave", "shared", "rshared"}

// Validate finds what can never work. Its errors wrap ErrUsage.
func (o *Options) Validate() error {
	full := *o
	full.setDefaults()
	if err := full.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}

func (o *Options) validate() error {
	if len(o.Command) == 0 {
		return errors.New("parent.Options.Command is missing: name the program to run, for example: bash")
	}
	if o.Name != "" {
		if err := statedir.CheckName(o.Name); err != nil {
			return err
		}
	}
	if err := o.validateNetwork(); err != nil {
		return err
	}
	if err := copyup.Validate(o.CopyUpDirs, o.CopyUpMode); err != nil {
		return err
	}
	if o.Propagation != "" && !slices.Contains(propagations, o.Propagation) {
		return fmt.Errorf("parent.Options.Propagation=%s: want one of %s", o.Propagation, strings.Join(propagations, ", "))
	}
	if g := o.EvacuateCgroup2; g != "" {
		if !o.CreatePIDNS || !o.CreateCgroupNS {
			return errors.New("parent.Options.EvacuateCgroup2 needs parent.Options.CreatePIDNS and parent.Options.CreateCgroupNS")
		}
		if g != filepath.Base(g) || g == "." || g == ".." {
			return fmt.Errorf("parent.Options.EvacuateCgroup2=%s: want the name of a cgroup, without a slash", g)
		}
	}
	if o.Reaper != nil && !*o.Reaper && o.CreatePIDNS {
		return errors.New("parent.Options.Reaper=false cannot go with parent.Options.CreatePIDNS: process 1 of a pid namespace has to collect orphans")
	}
	return o.validateIDs()
}

func (o *Options) validateNetwork() error {
	plan := o.Network.Plan()
	if o.DetachNetNS && !plan.Namespace {
		return fmt.Errorf("parent.Options.DetachNetNS needs a network of its own: parent.Options.Network=%s has none; use slirp or none", plan.Driver)
	}
	if o.Ports != nil && o.DisablePorts {
		return errors.New("parent.Options.DisablePorts cannot go with parent.Options.Ports")
	}
	if o.Ports != nil && !plan.Namespace {
		return fmt.Errorf("parent.Options.Ports needs a network of its own: parent.Options.Network=%s has none; use slirp, or no port driver", plan.Driver)
	}
	if (len(o.Publish) > 0 || o.PublishAuto) && !o.forwardsPorts() {
		return errors.New("parent.Options.Publish needs a port driver: use parent.Options.Network=slirp or none, with parent.Options.Ports=builtin")
	}
	if o.RestorePorts && !o.forwardsPorts() {
		return errors.New("parent.Options.RestorePorts needs a port driver: use parent.Options.Network=slirp or none, with parent.Options.Ports=builtin")
	}
	if o.RestorePorts && o.StateDir == "" {
		return errors.New("parent.Options.RestorePorts needs parent.Options.StateDir: a new directory has no forwards to restore")
	}
	for _, s := range o.Publish {
		if err := s.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// forwardsPorts says whether the gate has a port driver.
func (o *Options) forwardsPorts() bool {
	return !o.DisablePorts && o.Network.Plan().Namespace
}

// newPorts makes the port driver.
func (o *Options) newPorts(sockets port.Sockets) port.Driver {
	if o.Ports != nil {
		return o.Ports(sockets)
	}
	opener, _ := o.Network.(port.Opener)
	gateway, _ := o.Network.(port.Gateway)
	return builtin.New(builtin.Options{Sockets: sockets, Opener: opener, Gateway: gateway, Logger: o.Logger})
}

// mapsIDs says whether the user namespace is made for this gate.
func (o *Options) mapsIDs() bool {
	j, ok := o.Network.(network.Joiner)
	return !ok || j.MapsIDs()
}

func (o *Options) validateIDs() error {
	if !o.mapsIDs() && (o.SingleID || len(o.UIDMap)+len(o.GIDMap) > 0) {
		return fmt.Errorf("parent.Options.SingleID, parent.Options.UIDMap and parent.Options.GIDMap cannot go with parent.Options.Network=%s: ids are mapped by who has made its user namespace", o.Network.Plan().Driver)
	}
	if o.SingleID && len(o.UIDMap)+len(o.GIDMap) > 0 {
		return errors.New("parent.Options.SingleID maps the caller alone: it cannot go with parent.Options.UIDMap and parent.Options.GIDMap")
	}
	if (len(o.UIDMap) == 0) != (len(o.GIDMap) == 0) {
		return errors.New("parent.Options.UIDMap and parent.Options.GIDMap need each other")
	}
	if err := validateMaps(o.UIDMap); err != nil {
		return fmt.Errorf("parent.Options.UIDMap: %w", err)
	}
	if err := validateMaps(o.GIDMap); err != nil {
		return fmt.Errorf("parent.Options.GIDMap: %w", err)
	}
	if !slices.Contains([]string{"", "auto", "dynamic", "static"}, o.SubIDSource) {
		return fmt.Errorf("parent.Options.SubIDSource=%s: want auto, dynamic or static", o.SubIDSource)
	}
	return nil
}

// setDefaults replaces zero values by what they stand for.
func (o *Options) setDefaults() {
	if o.Network == nil {
		o.Network = network.Host()
	}
	if o.Reaper == nil {
		o.Reaper = &o.CreatePIDNS
	}
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if len(o.EnvPrefixes) == 0 {
		o.EnvPrefixes = defaultEnvPrefixes
	}
	if o.ChildArgs == nil {
		o.ChildArgs = append([]string{}, os.Args[min(1, len(os.Args)):]...)
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// mounts is what the child shall mount, with the files of the state dir to put
// over /etc's.
func (o *Options) mounts(dir *statedir.Dir) child.Mounts {
	plan := o.Network.Plan()
	inside := plan.Namespace && !o.DetachNetNS
	m := child.Mounts{
		Propagation: o.Propagation,
		CopyUp:      o.CopyUpDirs,
		CopyUpMode:  o.CopyUpMode,
		StateDir:    dir.Path(),
		Sys:         inside,
		Proc:        o.CreatePIDNS,
		Cgroup:      o.CreateCgroupNS,
	}
	if inside && (len(plan.Nameservers) > 0 || plan.DHCP) {
		m.ResolvConf = dir.ResolvConf()
	}
	if inside || len(o.AddHosts) > 0 && !o.DetachNetNS {
		m.Hosts = dir.Hosts()
	}
	return m
}
