package tcp

import (
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// TestMain fails when the tests leave a goroutine or a descriptor behind.
func TestMain(m *testing.M) { testenv.Main(m) }
