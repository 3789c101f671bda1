package parent

import (
	"os"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
	"github.com/gatekit/gatekit/pkg/child"
	"github.com/gatekit/gatekit/pkg/network"
)

// The test binary is the child of the gates that it runs. It knows the child half of a
// driver of its own, which hands up what it sees.
func TestMain(m *testing.M) {
	if child.IsChild() {
		os.Exit(child.Main(child.Options{Networks: map[string]child.NetworkSetup{
			"ours": func(network.Plan) ([]*os.File, error) {
				f, err := os.Open("/proc/thread-self/ns/net")
				return []*os.File{f}, err
			},
		}}))
	}
	testenv.Main(m)
}
