package parent

import (
	"strings"
	"testing"
	"time"
)

func TestAChildThatLeavesAndLivesOnIsNotWaitedFor(t *testing.T) {
	p := &process{ended: make(chan struct{})}
	if err := p.death(time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end") {
		t.Error(err)
	}
}
