package testenv

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ProcessInfo is one row of the process table.
type ProcessInfo struct {
	PID, PPID int

	// UID is the real user id as the machine sees it.
	UID uint32

	// Name is the kernel's short name of the process.
	Name string

	// State is the letter of proc(5): R, S, D, T, Z ...
	State string
}

func (p ProcessInfo) String() string {
	return fmt.Sprintf("%s (pid %d, parent %d, uid %d, state %s)", p.Name, p.PID, p.PPID, p.UID, p.State)
}

// readProcess reads /proc/PID/status. ok is false when the process is gone.
func readProcess(pid int) (p ProcessInfo, ok bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, false
	}
	p.PID = pid
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "Name":
			p.Name = fields[0]
		case "State":
			p.State = fields[0]
		case "PPid":
			p.PPID, _ = strconv.Atoi(fields[0])
		case "Uid":
			uid, _ := strconv.ParseUint(fields[0], 10, 32)
			p.UID = uint32(uid)
		}
	}
	return p, true
}

// allProcesses lists the machine's processes that are not zombies. A zombie
// runs no more, and when it goes depends on the machine's init.
func allProcesses() []ProcessInfo {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []ProcessInfo
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok && p.State != "Z" && p.State != "X" {
			out = append(out, p)
		}
	}
	return out
}

// Alive reports whether a process with this id exists and is no zombie.
func Alive(pid int) bool {
	p, ok := readProcess(pid)
	return ok && p.State != "Z" && p.State != "X"
}

// Children lists the ids of the processes, zombies too, whose parent is pid.
func Children(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(n); ok && p.PPID == pid {
				out = append(out, n)
			}
		}
	}
	return out
}

// Processes lists the processes of this Host: those that run as its user or a
// subordinate id of it, and those that real root started in it. Zombies are
// not listed.
func (h *Host) Processes() []ProcessInfo {
	return slices.DeleteFunc(allProcesses(), func(p ProcessInfo) bool {
		return !h.owns(p)
	})
}

func (h *Host) owns(p ProcessInfo) bool {
	if p.UID == h.User.UID || h.User.SubUIDs.contains(p.UID) {
		return true
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
	return err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(e []byte) bool {
		return string(e) == h.marker()
	})
}

// NoProcesses waits until no process of this Host is left, and fails the test
// when some stay.
func (h *Host) NoProcesses(t testing.TB) {
	t.Helper()
	var left []ProcessInfo
	if !Eventually(leakPatience, func() bool { left = h.Processes(); return len(left) == 0 }) {
		t.Errorf("processes left behind: %v", left)
	}
}

// killAll ends what is left of the Host, at the end of a test.
func (h *Host) killAll() {
	Eventually(leakPatience, func() bool {
		left := h.Processes()
		for _, p := range left {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		return len(left) == 0
	})
}
