package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/gatekit/gatekit/internal/linux"
)

// witnessName is the zeroth argument by which gatectl knows that it is the witness of
// exec. It has no "gatectl" in it: pkill(1) is to find what runs the program, not both.
const witnessName = "exec-witness"

// witness is a process beside gatectl that gets what is sent to all of the process
// group or cgroup, and says so (see package signals).
type witness struct {
	cmd    *exec.Cmd
	output *os.File
	copies chan<- os.Signal
	ended  chan struct{} // closed when nothing reads output any more; nil before ready
}

// startWitness starts the witness, which puts signals into copies once it is ready. It
// is of the calling thread, as the program is, and is killed with it.
func startWitness(copies chan<- os.Signal) (*witness, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{witnessName}
	cmd.Env = []string{}
	cmd.Stdout = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, fmt.Errorf("a witness of signals: %w", err)
	}
	return &witness{cmd: cmd, output: r, copies: copies}, nil
}

// ready waits until the witness catches signals. One that a signal has ended before is
// none, and then all signals are taken for gatectl's own.
func (w *witness) ready() {
	copies := bufio.NewReader(w.output)
	_, _ = copies.ReadByte()
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		for {
			s, err := copies.ReadByte()
			if err != nil {
				return
			}
			select {
			case w.copies <- syscall.Signal(s):
			default: // as many as that are one
			}
		}
	}()
}

// end ends the witness.
func (w *witness) end() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // it was killed
	if w.ended != nil {
		<-w.ended
	}
	w.output.Close()
}

// beWitness is the witness: it writes a zero when it catches signals, and then each
// that it gets.
func beWitness() int {
	copies := make(chan os.Signal, 64)
	signal.Notify(copies, linux.ForwardableSignals()...)
	for next := byte(0); ; next = byte((<-copies).(syscall.Signal)) {
		if _, err := os.Stdout.Write([]byte{next}); err != nil {
			return codeFailure
		}
	}
}
