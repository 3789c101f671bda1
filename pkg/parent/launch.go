package parent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatekit/gatekit/internal/handshake"
	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network"
)

// process is the child, as the parent holds it.
type process struct {
	*os.Process
	users  *linux.UserNamespace
	shared bool // others' processes may be in the user namespace, too

	// Its number is its own until it is waited for, which needs reaping.
	reaping sync.Mutex
	ended   chan struct{}    // closed when it was waited for
	state   *os.ProcessState // how it ended then, or nil and
	waitErr error            // why that is not known
}

// launch executes this program again, in new namespaces, as the child. The child
// holds the ambient capabilities of its user namespace, so that it can work
// before, and while, its ids are mapped: one execution is enough. It is started in
// the namespaces of joined, where there are any; ids are mapped there.
func launch(o *Options, joined *network.Namespaces) (*process, *handshake.Conn, error) {
	conn, theirs, err := handshake.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	p := &process{ended: make(chan struct{}), shared: joined != nil && joined.Shared}
	files := append([]*os.File{o.Stdin, o.Stdout, o.Stderr, theirs}, o.ListenFiles...)
	if joined == nil {
		p.Process, err = start(o, files)
	} else {
		p.Process, err = startIn(o, joined, files)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	go p.wait()
	if p.users, err = linux.OpenUserNamespace(p.Pid); err != nil {
		conn.Close()
		_ = p.Kill() // it may have ended by itself
		<-p.ended
		return nil, nil, fmt.Errorf("the child ended at once: %w", err)
	}
	return p, conn, nil
}

// wait waits for the end of the process, a child of ours that nobody else waits for.
func (p *process) wait() {
	p.waitErr = linux.AwaitEnd(p.Pid) // as a zombie it keeps its number
	p.reaping.Lock()
	defer p.reaping.Unlock()
	if p.waitErr == nil {
		p.state, p.waitErr = p.Process.Wait()
	}
	close(p.ended)
}

// withPID calls f with the number of the process, which means no other until f
// returns: newuidmap(1) takes no descriptor on all hosts.
func (p *process) withPID(f func(pid int) error) error {
	p.reaping.Lock()
	defer p.reaping.Unlock()
	select {
	case <-p.ended:
		return errChildGone
	default:
		return f(p.Pid)
	}
}

// start starts the child in new namespaces, with these descriptors from 0 on.
func start(o *Options, files []*os.File) (*os.Process, error) {
	cmd := exec.Command("/proc/self/exe", o.ChildArgs...)
	cmd.Args[0] = child.Name
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.Env = o.Env
	cmd.ExtraFiles = files[3:]
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  o.cloneFlags(),
		AmbientCaps: linux.AllCapabilities(),
	}
	if err := cmd.Start(); err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, explainNamespaces(fmt.Errorf("make namespaces: %w", err), "/proc")
	}
	return cmd.Process, nil
}

// startIn starts the child in namespaces that are there, and in new ones besides.
// The kernel gives all capabilities to who joins a user namespace of its own, and
// execve leaves them to root, which the child is there.
func startIn(o *Options, joined *network.Namespaces, files []*os.File) (*os.Process, error) {
	self, err := linux.OpenPath("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	const made = unix.CLONE_NEWUSER | unix.CLONE_NEWNET
	namespaces := []*os.File{joined.User}
	if !o.DetachNetNS { // otherwise a thread of the child joins it
		namespaces = append(namespaces, joined.Net)
	}
	restore := linux.LowerFileLimit()
	pid, err := linux.Entry{
		Files:   namespaces,
		New:     o.cloneFlags() &^ made,
		Dir:     dir,
		Program: self,
		Args:    append([]string{child.Name}, o.ChildArgs...),
		Env:     o.Env,
		Inherit: files,
		Outlive: true, // it sees the end of the handshake
	}.Start()
	restore()
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: the kernel lets only the user in to whom the namespaces belong", err)
	}
	if err != nil {
		return nil, err
	}
	return os.FindProcess(pid)
}

// detachedThread is the thread of the child that is in a network namespace which the
// child is not in: its number in this process' PID namespace, which the child may not
// know.
func (p *process) detachedThread() (int, error) {
	proc := fmt.Sprintf("/proc/%d/", p.Pid)
	own, err := os.Readlink(proc + "ns/net")
	if err != nil {
		return 0, err
	}
	threads, err := os.ReadDir(proc + "task")
	if err != nil {
		return 0, err
	}
	for _, t := range threads {
		ns, err := os.Readlink(proc + "task/" + t.Name() + "/ns/net")
		if err == nil && ns != own {
			return strconv.Atoi(t.Name())
		}
	}
	return 0, errors.New("no thread of the child is in the detached network")
}

// cloneFlags are the namespaces to make.
func (o *Options) cloneFlags() uintptr {
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNS)
	for _, ns := range []struct {
		wanted bool
		flag   uintptr
	}{
		{o.Network.Plan().Namespace && !o.DetachNetNS, unix.CLONE_NEWNET},
		{o.CreatePIDNS, unix.CLONE_NEWPID},
		{o.CreateCgroupNS, unix.CLONE_NEWCGROUP},
		{o.CreateUTSNS, unix.CLONE_NEWUTS},
		{o.CreateIPCNS, unix.CLONE_NEWIPC},
	} {
		if ns.wanted {
			flags |= ns.flag
		}
	}
	return flags
}

// defaultEnvPrefixes are those of Options.EnvPrefixes. An outer gate's variables
// of these names are taken away in any case.
var defaultEnvPrefixes = []string{"GATEKIT_", "ROOTLESSKIT_"}

// environment is env with the gate's variables. They are there from the child's
// execution on: clients read them in /proc/CHILD_PID/environ.
func environment(env, prefixes []string, stateDir string) []string {
	ours := []struct{ name, value string }{
		{"STATE_DIR", stateDir},
		{"PARENT_EUID", strconv.Itoa(os.Geteuid())},
		{"PARENT_EGID", strconv.Itoa(os.Getegid())},
	}
	outer := map[string]bool{}
	for _, prefix := range slices.Concat(prefixes, defaultEnvPrefixes) {
		for _, v := range ours {
			outer[prefix+v.name] = true
		}
	}
	var out []string
	for _, v := range env {
		if name, _, _ := strings.Cut(v, "="); !outer[name] {
			out = append(out, v)
		}
	}
	for _, prefix := range prefixes {
		for _, v := range ours {
			out = append(out, prefix+v.name+"="+v.value)
		}
	}
	return out
}

// end kills the child and all that lives in its user namespace, and waits for
// it.
func (p *process) end() error {
	_ = p.Kill() // it may have ended by itself
	<-p.ended
	defer p.users.Close()
	if p.shared {
		return nil // it has a PID namespace, and the kernel ended the rest with process 1
	}
	// With a PID namespace, too: one may have entered the gate, and not that.
	return p.users.Kill()
}

// death says how the child ended, once its channel has. What runs inside is root
// there as the child is, and can make it close the channel and live on.
func (p *process) death(patience time.Duration) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.ended:
	case <-timeout.C:
		return errors.New("the child left the parent and did not end: something inside has changed it")
	}
	if p.state == nil {
		return fmt.Errorf("the child ended unexpectedly: %w", p.waitErr)
	}
	status := p.state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return fmt.Errorf("the child was killed by %s", unix.SignalName(status.Signal()))
	}
	return fmt.Errorf("the child ended unexpectedly, with exit code %d", status.ExitStatus())
}
