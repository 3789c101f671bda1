package parent

import (
	"os"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/child"
)

// The test binary is the child of the gates that it runs.
func TestMain(m *testing.M) {
	if child.IsChild() {
		os.Exit(child.Main(child.Options{}))
	}
	testenv.Main(m)
}
