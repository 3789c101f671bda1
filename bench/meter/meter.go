// Package meter reads from /proc what processes cost: processor time, resident
// memory, wake-ups and descriptors, and how busy the machine is besides. It only
// reads; what it counts is what the kernel charges to a process. Work that the
// kernel does for a gate in another's name, such as the receiving side of a TAP
// in the context of the sender, is not in a process' figures but is in the
// machine's.
//
// All functions take the directory where a proc file system is mounted, so that
// tests can show them one.
package meter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in proc_pid_stat(5): USER_HZ, which is 100 on every
// architecture that Go runs on.
const tick = 10 * time.Millisecond

// Process is one row of the process table.
type Process struct {
	PID, PPID int
	Name      string

	// Zombie is set for one that has ended and was not reaped.
	Zombie bool

	// CPU is the time that it ran, in its own code and in the kernel, with all its
	// threads. Its children are not in it.
	CPU time.Duration
}

// Processes lists those that the proc file system shows.
func Processes(proc string) ([]Process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		p, err := parseStat(string(stat))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// parseStat reads a line of proc_pid_stat(5). The name may hold anything.
func parseStat(line string) (Process, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("stat of a process without a name: %q", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 13 {
		return Process{}, fmt.Errorf("stat of a process has only %d fields after the name: %q", len(fields), line)
	}
	numbers := make([]int, 4)
	for i, text := range []string{strings.TrimSpace(line[:open]), fields[1], fields[11], fields[12]} {
		n, err := strconv.Atoi(text)
		if err != nil {
			return Process{}, fmt.Errorf("stat of a process: %w", err)
		}
		numbers[i] = n
	}
	return Process{
		PID:    numbers[0],
		PPID:   numbers[1],
		Name:   line[open+1 : end],
		Zombie: fields[0] == "Z" || fields[0] == "X",
		CPU:    time.Duration(numbers[2]+numbers[3]) * tick,
	}, nil
}

// Below returns those of all that are one of the roots or descend from one.
func Below(all []Process, roots ...int) []int {
	parent := map[int]int{}
	for _, p := range all {
		parent[p.PID] = p.PPID
	}
	var below []int
	for _, p := range all {
		for pid := p.PID; pid != 0; pid = parent[pid] {
			if slices.Contains(roots, pid) {
				below = append(below, p.PID)
				break
			}
		}
	}
	return below
}

// Usage is what several processes use, in sum.
type Usage struct {
	// CPU is as in Process.
	CPU time.Duration

	// Resident is memory in bytes (VmRSS). Pages that two of the processes share,
	// such as a program's code, count twice.
	Resident int64

	// Switches is how often their threads left the processor, by their own will
	// or not. A process that sleeps has none: each wake-up ends in one.
	Switches int64

	// Descriptors is how many they have open.
	Descriptors int
}

// Measure sums the usage of processes. One that has ended counts nothing.
func Measure(proc string, pids []int) (Usage, error) {
	var sum Usage
	for _, pid := range pids {
		u, err := measure(filepath.Join(proc, strconv.Itoa(pid)))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // before, or while it was read
			continue
		}
		if err != nil {
			return Usage{}, err
		}
		sum.CPU += u.CPU
		sum.Resident += u.Resident
		sum.Switches += u.Switches
		sum.Descriptors += u.Descriptors
	}
	return sum, nil
}

func measure(dir string) (Usage, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, err
	}
	p, err := parseStat(string(stat))
	if err != nil {
		return Usage{}, err
	}
	u := Usage{CPU: p.CPU}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Usage{}, err
	}
	u.Resident = statusNumber(string(status), "VmRSS") << 10
	if u.Switches, err = switches(dir); err != nil {
		return Usage{}, err
	}
	descriptors, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return Usage{}, err
	}
	u.Descriptors = len(descriptors)
	return u, nil
}

// switches sums those of all threads; the status of a process has only those of
// its first thread.
func switches(dir string) (int64, error) {
	threads, err := filepath.Glob(filepath.Join(dir, "task", "*", "status"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range threads {
		status, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		sum += statusNumber(string(status), "voluntary_ctxt_switches") +
			statusNumber(string(status), "nonvoluntary_ctxt_switches")
	}
	return sum, nil
}

// statusNumber is the number after a key in proc_pid_status(5), 0 where the key
// is missing, as VmRSS is for a zombie.
func statusNumber(status, key string) int64 {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); name == key && len(fields) > 0 {
			n, _ := strconv.ParseInt(fields[0], 10, 64)
			return n
		}
	}
	return 0
}
