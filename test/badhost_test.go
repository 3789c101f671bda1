package test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gatekit/gatekit/internal/testenv"
)

func TestAStateDirThatCannotBeWrittenIsRefused(t *testing.T) {
	h := testenv.NewHost(t)
	if err := os.Mkdir(h.Path("/srv/roots"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.WriteFile(t, "/srv/file", "", 0o644)
	for name, dir := range map[string]string{
		"of another user":     "/srv/roots",
		"in one of another's": "/srv/roots/new",
		"that is a file":      "/srv/file",
	} {
		t.Run(name, func(t *testing.T) {
			badInput{[]string{"--state-dir=" + dir, "true"}, []string{"state", dir}}.refuse(t, h, 1)
		})
	}
}

func TestSubordinateIDsThatDoNotSufficeAreRefused(t *testing.T) {
	h := testenv.NewHost(t)
	good := h.User.DefaultSubIDs()
	small := fmt.Sprintf("ada:%d:1000\n", h.User.SubUIDs.Start)
	for name, c := range map[string]struct {
		subuid, subgid string
		says           []string
	}{
		"no user ids":       {"", good, []string{"/etc/subuid", "--add-subuids"}},
		"no group ids":      {good, "", []string{"/etc/subgid", "--add-subgids"}},
		"neither":           {"", "", []string{"/etc/subuid", "--add-subuids"}},
		"those of others":   {"eve:1000000:65536\n", "eve:1000000:65536\n", []string{"/etc/subuid", "--add-subuids"}},
		"too few user ids":  {small, good, []string{"/etc/subuid", "1000", "--add-subuids"}},
		"too few group ids": {good, small, []string{"/etc/subgid", "1000", "--add-subgids"}},
	} {
		t.Run(name, func(t *testing.T) {
			h.SetSubIDs(t, c.subuid, c.subgid)
			badInput{[]string{"true"}, c.says}.refuse(t, h, 1)
		})
	}
	t.Run("explicit mappings of ids that are not the caller's", func(t *testing.T) {
		h.SetSubIDs(t, good, good)
		u := h.User
		badInput{
			[]string{fmt.Sprintf("--uidmap=0:%d:1", u.UID), "--uidmap=1:1:1000", fmt.Sprintf("--gidmap=0:%d:1", u.GID), "true"},
			[]string{"newuidmap", "--add-subuids"},
		}.refuse(t, h, 1)
	})
}

func TestMissingHelpersAreNamed(t *testing.T) {
	for _, program := range []string{"newuidmap", "newgidmap"} {
		t.Run(program+" is not installed", func(t *testing.T) {
			h := testenv.NewHost(t)
			h.Hide(t, "/usr/bin/"+program)
			badInput{[]string{"true"}, []string{program, "apt-get install uidmap"}}.refuse(t, h, 1)
		})
		t.Run(program+" has no set-uid bit", func(t *testing.T) {
			h := testenv.NewHost(t)
			text, err := os.ReadFile("/usr/bin/" + program)
			if err != nil {
				t.Fatal(err)
			}
			h.WriteFile(t, "/srv/plain", string(text), 0o755)
			h.Bind(t, "/srv/plain", "/usr/bin/"+program)
			badInput{[]string{"true"}, []string{"/usr/bin/" + program, "chmod u+s"}}.refuse(t, h, 1)
		})
	}
	t.Run("getsubids is not installed", func(t *testing.T) {
		h := testenv.NewHost(t)
		h.Hide(t, "/usr/bin/getsubids")
		badInput{[]string{"--subid-source=dynamic", "true"}, []string{"getsubids", "--subid-source=static"}}.refuse(t, h, 1)
		output(t, h, "true") // and nobody else needs it
	})
}

func TestATunDeviceThatCannotBeOpenedIsNamed(t *testing.T) {
	slirp := badInput{[]string{"--net=slirp", "true"}, []string{"/dev/net/tun"}}
	t.Run("missing", func(t *testing.T) {
		h := testenv.NewHost(t)
		if err := os.Mkdir(h.Path("/srv/empty"), 0o755); err != nil {
			t.Fatal(err)
		}
		h.Bind(t, "/srv/empty", "/dev/net")
		badInput{slirp.args, append(slirp.says, "modprobe tun")}.refuse(t, h, 1)
		output(t, h, "--net=none", "true") // needs none
	})
	t.Run("closed", func(t *testing.T) {
		h := testenv.NewHost(t)
		h.Do(t, func() error { return os.Chmod("/dev/net/tun", 0o600) })
		badInput{slirp.args, append(slirp.says, "chmod")}.refuse(t, h, 1)
	})
	t.Run("another device", func(t *testing.T) {
		h := testenv.NewHost(t)
		h.Bind(t, "/dev/null", "/dev/net/tun")
		// The child finds out, while its ids are mapped or after. Whenever it is,
		// its reason is told.
		for range 20 {
			badInput{slirp.args, []string{"tap0"}}.refuse(t, h, 1)
		}
	})
}

func TestForbiddenUserNamespacesAreExplained(t *testing.T) {
	t.Run("by sysctl", func(t *testing.T) {
		h := testenv.NewHost(t)
		// The setting is one of each user namespace: here of one between the Host
		// and the gate.
		cmd := asUser(h, "echo 0 > /proc/sys/user/max_user_namespaces", "gatekit", "true")
		everyone := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1<<32 - 2}}
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = everyone, everyone
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		before := trace(t, h)
		b := badInput{nil, []string{"user namespaces", "sysctl -w user.max_user_namespaces="}}
		b.check(t, h.Run(t, cmd), 1)
		h.NoTrace(t, before)
	})
	t.Run("by a container's seccomp filter", func(t *testing.T) {
		h := testenv.NewHost(t)
		h.WriteFile(t, "/srv/forbid.py", forbidUserNamespaces, 0o644)
		cmd := h.RootCommand("python3", "/srv/forbid.py", fmt.Sprint(h.User.UID), fmt.Sprint(h.User.GID), "gatekit", "true")
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+h.User.RuntimeDir)
		before := trace(t, h)
		b := badInput{nil, []string{"user namespaces", "seccomp", "unconfined"}}
		b.check(t, h.Run(t, cmd), 1)
		h.NoTrace(t, before)
	})
}

// asUser is a command that does the set-up, a line of shell, as root and then
// becomes the Host's user to run the rest.
func asUser(h *testenv.Host, setUp string, args ...string) *exec.Cmd {
	u := h.User
	script := fmt.Sprintf(`%s && exec setpriv --reuid=%d --regid=%d --groups=%d -- "$@"`, setUp, u.UID, u.GID, u.GID)
	cmd := h.RootCommand("sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+u.RuntimeDir)
	return cmd
}

// forbidUserNamespaces is a program that installs the filter with which
// container engines forbid user namespaces, and becomes UID, GID and the rest of
// its arguments. clone and unshare with CLONE_NEWUSER get EPERM; clone3, whose
// flags a filter cannot see, does not exist.
var forbidUserNamespaces = strings.TrimSpace(`
import ctypes, os, platform, struct, sys

LOAD, JEQ, JSET, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO = 0x7fff0000, 0x00050000
EPERM, ENOSYS = 1, 38
CLONE_NEWUSER = 0x10000000
clone, unshare, clone3 = {"x86_64": (56, 272, 435), "aarch64": (220, 97, 435)}[platform.machine()]

program = [
    (LOAD, 0, 0, 0),             # the system call's number
    (JEQ, 4, 0, clone3),
    (JEQ, 1, 0, clone),
    (JEQ, 0, 4, unshare),
    (LOAD, 0, 0, 16),            # its first argument, the flags
    (JSET, 1, 2, CLONE_NEWUSER),
    (RETURN, 0, 0, ERRNO | ENOSYS),
    (RETURN, 0, 0, ERRNO | EPERM),
    (RETURN, 0, 0, ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in program))

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

filter = Program(len(program), ctypes.addressof(code))
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter), 0, 0) != 0:
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([gid])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
os.execvp(sys.argv[3], sys.argv[3:])
`)
