package copyup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gatekit/gatekit/internal/linux"
	"github.com/gatekit/gatekit/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestMountsBelowStayVisibleAndWritable(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			testenv.UserNS{Outer: func(t *testing.T) {
				run := filepath.Join(testenv.Scratch(), "run")
				write(t, run+"/pid", "1")
				write(t, run+"/plain/file", "plain")
				must(t, os.MkdirAll(run+"/user/1000", 0o755))
				must(t, os.MkdirAll(run+"/lock", 0o755))
				write(t, run+"/mounted", "hidden")
				must(t, linux.Mount("tmpfs", run+"/user/1000", "tmpfs", 0, "mode=777"))
				must(t, linux.Mount("tmpfs", run+"/lock", "tmpfs", 0, "mode=777"))
				must(t, linux.Mount(run+"/pid", run+"/mounted", "", unix.MS_BIND, ""))
				write(t, run+"/user/1000/bus", "bus")
				write(t, run+"/lock/lockfile", "lock")
			}, Inner: func(t *testing.T) {
				run := filepath.Join(testenv.Scratch(), "run")
				user, lock := beneath(t, run+"/user/1000"), beneath(t, run+"/lock")
				do(t, mode, run)
				reads(t, run+"/pid", "1")
				reads(t, run+"/mounted", "1")
				reads(t, run+"/plain/file", "plain")
				reads(t, run+"/user/1000/bus", "bus")
				reads(t, run+"/lock/lockfile", "lock")
				write(t, run+"/user/1000/new", "new")
				write(t, run+"/lock/new", "new")
				reads(t, user+"/new", "new")
				reads(t, lock+"/new", "new")
				write(t, run+"/fresh/file", "fresh")
				must(t, os.Remove(run+"/pid"))
				write(t, run+"/pid", "2")
				reads(t, run+"/mounted", "1")
			}}.Run(t)
		})
	}
}

func TestADirectoryThatIsAMountIsCopiedUp(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			run := func() string { return filepath.Join(testenv.Scratch(), "run") }
			testenv.UserNS{Outer: func(t *testing.T) {
				must(t, os.Mkdir(run(), 0o755))
				must(t, linux.Mount("tmpfs", run(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"))
				write(t, run()+"/pid", "1")
				write(t, run()+"/user/bus", "bus")
			}, Inner: func(t *testing.T) {
				host := beneath(t, run())
				do(t, mode, run())
				reads(t, run()+"/user/bus", "bus")
				must(t, os.Remove(run()+"/pid"))
				write(t, run()+"/pid", "2")
				reads(t, host+"/pid", "1")
			}}.Run(t)
		})
	}
}

func TestACopiedUpDirectoryIsCopiedUpByAGateInside(t *testing.T) {
	for _, outer := range modes {
		for _, inner := range modes {
			t.Run(outer+" then "+inner, func(t *testing.T) {
				dir := func() string { return filepath.Join(testenv.Scratch(), "etc") }
				testenv.UserNS{Outer: func(t *testing.T) {
					write(t, testenv.Scratch()+"/usr/x.crt", "certificate")
					write(t, dir()+"/passwd", "root")
					link(t, "../../usr/x.crt", dir()+"/ssl/x.crt")
					do(t, outer, dir())
					write(t, dir()+"/outer", "outer")
				}, Inner: func(t *testing.T) {
					do(t, inner, dir())
					reads(t, dir()+"/passwd", "root")
					reads(t, dir()+"/outer", "outer")
					reads(t, dir()+"/ssl/x.crt", "certificate")
					write(t, dir()+"/inner", "inner")
					reads(t, dir()+"/inner", "inner")
				}}.Run(t)
			})
		}
	}
}

func TestAnOverlayOfADirectoryWithMountsOverlaysTheOtherDirectories(t *testing.T) {
	inside(t, func(t *testing.T) {
		run := filepath.Join(testenv.Scratch(), "run")
		write(t, run+"/a, b:c/file", "host")
		must(t, os.MkdirAll(run+"/lock", 0o755))
		must(t, linux.Mount("tmpfs", run+"/lock", "tmpfs", 0, ""))
		host := beneath(t, run)
		do(t, ModeOverlay, run)
		write(t, run+"/a, b:c/file", "inside")
		reads(t, host+"/a, b:c/file", "host")
		for _, name := range []string{"lock", "a, b:c"} {
			if fi, err := os.Lstat(run + "/" + name); err != nil || !fi.IsDir() {
				t.Errorf("%s is no directory: %v, %v", name, fi, err)
			}
		}
	})
}

func TestWhatIsKeptFollowsTheHost(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		run := filepath.Join(testenv.Scratch(), "run")
		write(t, run+"/user/gate/lock", "")
		host := beneath(t, run)
		_, err := Do(Options{Dirs: []string{run}, Mode: mode, Keep: []string{run + "/user/gate", run + "/missing"}})
		must(t, err)
		write(t, host+"/user/gate/api", "listening")
		reads(t, run+"/user/gate/api", "listening")
		write(t, run+"/user/gate/inside", "seen")
		reads(t, host+"/user/gate/inside", "seen")
	})
}
