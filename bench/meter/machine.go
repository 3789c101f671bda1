package meter

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Machine says on what a benchmark ran, in words that name no particular one.
type Machine struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`

	// Memory is in bytes.
	Memory int64 `json:"memory"`
}

func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, %.0f GiB of memory, Linux %s", m.CPUs, m.CPU, float64(m.Memory)/(1<<30), m.Kernel)
}

// ReadMachine reads the version of the kernel, the processors and the memory.
func ReadMachine(proc string) (Machine, error) {
	release, err := os.ReadFile(filepath.Join(proc, "sys/kernel/osrelease"))
	if err != nil {
		return Machine{}, err
	}
	cpuinfo, err := os.ReadFile(filepath.Join(proc, "cpuinfo"))
	if err != nil {
		return Machine{}, err
	}
	meminfo, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return Machine{}, err
	}
	m := Machine{Kernel: kernelVersion(string(release)), CPU: "processor", Memory: statusNumber(string(meminfo), "MemTotal") << 10}
	for line := range strings.Lines(string(cpuinfo)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "processor":
			m.CPUs++
		case "model name":
			m.CPU = strings.Join(strings.Fields(value), " ")
		}
	}
	return m, nil
}

// kernelVersion is the version in a release, without what a builder added to it.
func kernelVersion(release string) string {
	release = strings.TrimSpace(release)
	if end := strings.IndexFunc(release, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); end > 0 {
		return release[:end]
	}
	return release
}

// BusyTime is how long the processors of the machine worked since it was booted,
// in sum. Time stolen by a hypervisor is not in it.
func BusyTime(proc string) (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s/stat starts with %q", proc, line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s/stat: %w", proc, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}
