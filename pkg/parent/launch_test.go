package parent

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
)

func TestAChildThatLeavesAndLivesOnIsNotWaitedFor(t *testing.T) {
	p := &process{ended: make(chan struct{})}
	if err := p.death(time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end") {
		t.Error(err)
	}
}

func TestAChildWhoseEndIsNotKnownIsAnError(t *testing.T) {
	p := &process{ended: make(chan struct{}), waitErr: syscall.ECHILD}
	close(p.ended)
	if err := p.death(time.Second); !errors.Is(err, syscall.ECHILD) {
		t.Error(err)
	}
}

func TestTheNumberOfAChildIsItsOwnWhileIDsAreMapped(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Process: cmd.Process, ended: make(chan struct{})}
	go p.wait()
	err := p.withPID(func(pid int) error {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := linux.AwaitEnd(pid); err != nil {
			t.Errorf("it is gone: %v", err)
		}
		if testenv.Eventually(50*time.Millisecond, func() bool {
			select {
			case <-p.ended:
				return true
			default:
				return false
			}
		}) {
			t.Error("it was waited for while its number was in use")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	<-p.ended
	if err := p.withPID(func(int) error { return nil }); !errors.Is(err, errChildGone) {
		t.Errorf("of a child that is gone: %v", err)
	}
}
