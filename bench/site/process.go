package site

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Searched are the directories where programs of the site are found, as in PATH: sbin
// too, which a user's may lack.
const Searched = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

// lookPath finds a program in them. It is used for set-uid programs, which the
// caller's PATH should not choose.
func lookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(Searched) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %s", name, Searched)
}

// Where a process starts.
type Where int

// The two machines of a site, and the plain namespace of AddCard.
const (
	Host Where = iota
	Outside
	Plain
)

// Process is a program that was started in the site.
type Process struct {
	// Ended is closed when it has ended.
	Ended chan struct{}

	name   string
	cmd    *exec.Cmd
	output *tail
	err    error // how it ended; to be read once Ended is closed
}

// Start starts a program as the unprivileged user, with an environment that is the
// same on every machine.
func (s *Site) Start(where Where, args ...string) (*Process, error) {
	p := &Process{Ended: make(chan struct{}), name: filepath.Base(args[0]), output: &tail{}}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Dir = s.Path("home")
	p.cmd.Env = []string{"PATH=" + s.Path("bin") + ":" + Searched, "LANG=C.UTF-8", "USER=ada", "LOGNAME=ada",
		"HOME=" + s.Path("home"), "XDG_RUNTIME_DIR=" + s.Path("run"), "TMPDIR=" + s.Path("tmp")}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Credential: &syscall.Credential{Uid: uint32(s.User.ID), Gid: uint32(s.User.ID)},
	}
	p.cmd.WaitDelay = time.Second
	start := p.cmd.Start
	switch where {
	case Outside:
		start = func() error { return s.outside.do(p.cmd.Start) }
	case Plain:
		start = func() error { return s.plain.do(p.cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.Ended)
	}()
	return p, nil
}

// PID is the process' id in the site.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Err waits for the end of the process and says how it failed, with the last that
// it wrote; nil when it succeeded.
func (p *Process) Err() error {
	<-p.Ended
	if p.err == nil || errors.Is(p.err, exec.ErrWaitDelay) {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", p.name, p.err, p.output)
}

// Stop asks the process to end, and kills it when it does not within the limit.
func (p *Process) Stop(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.Ended:
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		<-p.Ended
	}
}

// tail keeps the end of what a program writes.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 2000
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - most; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(string(bytes.TrimSpace(t.text)), "\n", "; ")
}
