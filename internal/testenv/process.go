package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// outputPatience is how long the output pipes of an ended command may stay
// open. They stay open when a process that the command left behind holds them.
const outputPatience = 5 * time.Second

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string

	// Code is the exit code, or -1 when a signal ended the command.
	Code int

	// Signal is what ended the command, or 0.
	Signal syscall.Signal
}

func (r Result) String() string {
	how := fmt.Sprintf("exit code %d", r.Code)
	if r.Signal != 0 {
		how = "killed by " + r.Signal.String()
	}
	return fmt.Sprintf("%s\nstdout: %s\nstderr: %s", how, r.Stdout, r.Stderr)
}

// Process is a command that was started in a Host or an Outside.
type Process struct {
	cmd            *exec.Cmd
	stdout, stderr *Buffer
	ended          chan struct{}
	waitErr        error
}

// start starts cmd with start, collects its output where cmd sends it nowhere
// else, and has it killed at the end of the test.
func start(t testing.TB, cmd *exec.Cmd, start func(*exec.Cmd) error) *Process {
	t.Helper()
	p := &Process{cmd: cmd, stdout: &Buffer{}, stderr: &Buffer{}, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	cmd.WaitDelay = outputPatience
	if err := start(cmd); err != nil {
		t.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	go func() {
		p.waitErr = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Kill()
		<-p.ended
	})
	return p
}

// PID is the process id as the machine sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stdout and Stderr return the output so far.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr returns the error output so far.
func (p *Process) Stderr() string { return p.stderr.String() }

// Signal sends a signal to the process itself. One that has ended gets none.
func (p *Process) Signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// Kill sends SIGKILL.
func (p *Process) Kill() { p.Signal(syscall.SIGKILL) }

// Ended is closed when the process has ended and was reaped.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Wait waits for the end of the process, and fails the test when that takes
// longer than Patience or when the output stays open after the end because the
// process left another one behind.
func (p *Process) Wait(t testing.TB) Result {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.Signal(syscall.SIGQUIT) // a Go program shows where it hangs
		if !Eventually(outputPatience, func() bool { return !p.Running() }) {
			p.Kill()
		}
		t.Fatalf("%s did not end within %v\nstdout: %s\nstderr: %s",
			strings.Join(p.cmd.Args, " "), Patience, p.Stdout(), p.Stderr())
	}
	if errors.Is(p.waitErr, exec.ErrWaitDelay) {
		t.Errorf("%s left a process behind that holds its output open", strings.Join(p.cmd.Args, " "))
	}
	r := Result{Stdout: p.Stdout(), Stderr: p.Stderr(), Code: p.cmd.ProcessState.ExitCode()}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Signal = ws.Signal()
	}
	return r
}

// Buffer is a bytes.Buffer that may be read while it is written. Its zero value
// is empty.
type Buffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write appends p. It never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
