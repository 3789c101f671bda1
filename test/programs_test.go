package test

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

// Programs that scripts/ has put below bin/ are for every Host, in a folder of
// /usr/local/bin.

// broughtFolders are those of bin/ that every Host has.
var broughtFolders struct {
	sync.Mutex
	folders map[string]error
}

// carry brings a folder of bin/, once: by links, or as a copy where that is another
// file system. It returns where Hosts have it; without it the test is skipped, and
// maker says who makes it.
func carry(t *testing.T, name, maker string) (dir string) {
	t.Helper()
	from, to := "../bin/"+name, testenv.Binaries(t)+"/"+name
	if _, err := os.Stat(from); err != nil {
		testenv.Skip(t, fmt.Sprintf("%s has not made it: %v", maker, err))
	}
	broughtFolders.Lock()
	defer broughtFolders.Unlock()
	err, done := broughtFolders.folders[name]
	if !done {
		if exec.Command("cp", "-al", from, to).Run() != nil {
			if out, failed := exec.Command("cp", "-a", "--reflink=auto", from+"/.", to).CombinedOutput(); failed != nil {
				err = fmt.Errorf("%w: %s", failed, out)
			}
		}
		if broughtFolders.folders == nil {
			broughtFolders.folders = map[string]error{}
		}
		broughtFolders.folders[name] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return "/usr/local/bin/" + name
}
