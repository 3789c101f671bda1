// Package site makes the place where a benchmark runs: namespaces of its own, in
// which nothing of the machine's network is seen and from which nothing stays.
//
//	the machine     Enter: starts the program once more, inside, and waits
//	  site          Open: PID, mount, network and IPC namespaces, an unprivileged
//	  |             user, a link to the outside
//	  |-- host      the network namespace where gates are started: lo, eth0 with
//	  |             198.51.100.1 and a default route
//	  |-- outside   another machine on eth0: 198.51.100.2
//	  `-- gates     each makes the namespaces of its child itself
//
// All that is made is owned by the PID namespace of the site. Its first process
// dies when Enter is told to end, or when the program that called Enter dies, by
// whatever signal; the kernel then kills what is left and frees mounts and
// interfaces. So nothing needs to be undone on any path but one empty directory.
//
// Root makes the namespaces directly. A user needs subordinate ids: gatekit itself
// makes the site then (--net=none --pidns --copy-up=/etc), and everything runs one
// user namespace deeper.
package site

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says how to enter a site.
type Options struct {
	// Gatekit is the path of the program; only a caller who is not root needs it.
	Gatekit string

	// Dir is an empty directory that every user can reach. The site has its
	// files there; outside of the site it stays empty.
	Dir string

	// Args are the arguments with which this program is started inside, where it
	// calls Open.
	Args []string

	// Stdout and Stderr take what the program inside writes.
	Stdout, Stderr io.Writer
}

// fileLimit is how many descriptors each process of the site may have open, where
// that may be raised: some gates do not raise their own.
const fileLimit = 1 << 16

// Enter starts this program in a new site and waits until it has ended, and with
// it all that was started there. When the context ends, it is killed.
func Enter(ctx context.Context, o Options) error {
	// The kernel kills the child when the thread that started it ends: this one
	// is kept until the child has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd, err := o.command(ctx)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	cmd.WaitDelay = 10 * time.Second
	if err := raiseFileLimit(); err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

func (o Options) command(ctx context.Context) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		cmd := exec.CommandContext(ctx, self, o.Args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			// A session of its own: Ctrl-C is for this process, which then ends
			// the whole site.
			Setsid:     true,
			Pdeathsig:  unix.SIGKILL,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		}
		return cmd, nil
	}
	args := []string{"--net=none", "--pidns", "--ipcns", "--copy-up=/etc", self}
	cmd := exec.CommandContext(ctx, o.Gatekit, append(args, o.Args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	return cmd, nil
}

// raiseFileLimit raises the limits of this process, from which all others inherit
// them.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("getrlimit(RLIMIT_NOFILE): %w", err)
	}
	// syscall's, unlike x/sys', has the limits passed on to the programs that are
	// started. Root without CAP_SYS_RESOURCE is a user in this.
	raised := syscall.Rlimit{Cur: fileLimit, Max: fileLimit}
	if limit.Max < fileLimit && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
		return nil
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit.Max, Max: limit.Max}); err != nil {
		return fmt.Errorf("setrlimit(RLIMIT_NOFILE, %d): %w", limit.Max, err)
	}
	return nil
}
