package signals

import (
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
